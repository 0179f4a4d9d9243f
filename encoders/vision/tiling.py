"""Static tiling of the V2-VL model: an image becomes a sheet of square tiles plus a thumbnail.

Dynamic resolution (`encoders.vision.preprocessing`) replaced it; models trained with tiles still
need them. Every tile is an image of its own for the tower.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from encoders.vision.preprocessing import (
    DOWNSAMPLE,
    IMAGE_MEAN,
    IMAGE_STD,
    PATCH_SIZE,
    num_image_tokens,
    resize_and_patchify,
)

TILE_SIZE = 512  # pixels a side: 32x32 patches, 256 tokens
MAX_TILES = 12  # the thumbnail not counted


class TiledImage(NamedTuple):
    """Patch rows of the tiles of one image, ready for `RadioTower.encode_images`."""

    patches: Float[Tensor, "patches values"]  # tile by tile, row by row; the thumbnail is last
    grids: Int[Tensor, "tiles 2"]


def choose_tiling(
    height: int, width: int, *, max_tiles: int = MAX_TILES, tile_size: int = TILE_SIZE
) -> tuple[int, int]:
    """Choose the sheet of tiles whose aspect ratio is closest to the image's.

    Among sheets of the same ratio, such as 1x1 and 2x2, the larger is taken if the image fills
    more than half of it.

    Args:
        height: Image height in pixels, at least 1.
        width: Image width in pixels, at least 1.
        max_tiles: Tiles a sheet may have.
        tile_size: Side of a tile in pixels.

    Returns:
        `(rows, columns)` of the sheet.

    Raises:
        ValueError: If a size or `max_tiles` is below 1.
    """
    if min(height, width, max_tiles) < 1:
        raise ValueError(
            f"Image sides and max_tiles must be at least 1, found {height}x{width} pixels and "
            f"{max_tiles} tiles."
        )
    sheets = [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]
    best, best_difference = (1, 1), float("inf")
    for rows, columns in sorted(sheets, key=lambda sheet: sheet[0] * sheet[1]):
        difference = abs(width / height - columns / rows)
        fills_half = height * width > 0.5 * rows * columns * tile_size**2
        if difference < best_difference or (difference == best_difference and fills_half):
            best, best_difference = (rows, columns), difference
    return best


def num_tiles(tiling: tuple[int, int], *, thumbnail: bool = True) -> int:
    """Count the tiles of a sheet; the thumbnail joins only where there are several."""
    tiles = tiling[0] * tiling[1]
    return tiles + 1 if thumbnail and tiles > 1 else tiles


def num_tiling_tokens(
    tiling: tuple[int, int],
    *,
    thumbnail: bool = True,
    tile_size: int = TILE_SIZE,
    patch_size: int = PATCH_SIZE,
    downsample: int = DOWNSAMPLE,
) -> int:
    """Count the tokens of a tiled image, without delimiters: 256 per tile by default.

    Raises:
        ValueError: If a tile does not divide into tokens.
    """
    side = _tile_side(tile_size, patch_size)
    return num_tiles(tiling, thumbnail=thumbnail) * num_image_tokens((side, side), downsample)


def tile_image(
    image: Shaped[Tensor, "height width channels"],
    *,
    tiling: tuple[int, int] | None = None,
    max_tiles: int = MAX_TILES,
    thumbnail: bool = True,
    tile_size: int = TILE_SIZE,
    patch_size: int = PATCH_SIZE,
    mean: tuple[float, ...] = IMAGE_MEAN,
    std: tuple[float, ...] = IMAGE_STD,
) -> TiledImage:
    """Resize an image to its sheet of tiles and cut it into patches tile by tile.

    Args:
        image: uint8 RGB, `(height, width, 3)`.
        tiling: `(rows, columns)` of the sheet; by default chosen from the image's size.
        max_tiles: Tiles a chosen sheet may have, the thumbnail not counted.
        thumbnail: Add the whole image as one more tile where there are several.
        tile_size: Side of a tile in pixels, a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        mean: Per-channel mean for values in [0, 1].
        std: Per-channel standard deviation for values in [0, 1].

    Raises:
        ValueError: If the image is not uint8 RGB or a tile does not divide into patches.
    """
    side = _tile_side(tile_size, patch_size)
    rows, columns = tiling or choose_tiling(
        image.shape[0], image.shape[1], max_tiles=max_tiles, tile_size=tile_size
    )
    pixels = image.unsqueeze(0)
    sheet = resize_and_patchify(
        pixels, (rows * side, columns * side), patch_size=patch_size, mean=mean, std=std
    )
    tiles = sheet.reshape(rows, side, columns, side, -1).transpose(1, 2)
    patches = tiles.reshape(len(sheet), -1)  # tile by tile
    count = num_tiles((rows, columns), thumbnail=thumbnail)
    if count > rows * columns:
        whole = resize_and_patchify(pixels, (side, side), patch_size=patch_size, mean=mean, std=std)
        patches = torch.cat([patches, whole])
    return TiledImage(patches, torch.full((count, 2), side))


def _tile_side(tile_size: int, patch_size: int) -> int:
    if tile_size % patch_size:
        raise ValueError(
            f"Tiles of {tile_size} pixels do not divide into patches of {patch_size} pixels."
        )
    return tile_size // patch_size
