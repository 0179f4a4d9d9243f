"""Static tiling of the V2-VL model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.vision.preprocessing import resize_and_patchify
from encoders.vision.tiling import choose_tiling, num_tiles, num_tiling_tokens, tile_image


@pytest.mark.parametrize(
    ("height", "width", "tiling", "tokens"),
    [
        (100, 100, (1, 1), 256),  # one tile needs no thumbnail
        (512, 512, (1, 1), 256),
        (800, 800, (2, 2), 5 * 256),  # fills more than half of 2x2
        (4000, 4000, (3, 3), 10 * 256),
        (720, 1280, (1, 2), 3 * 256),  # 16:9 lies nearer to 2:1 than to 3:2
        (1080, 1920, (2, 4), 9 * 256),
        (2000, 1000, (4, 2), 9 * 256),
        (100, 5000, (1, 12), 13 * 256),
        (5000, 100, (12, 1), 13 * 256),
    ],
)
def test_tilings(height, width, tiling, tokens):
    assert choose_tiling(height, width) == tiling
    assert num_tiling_tokens(tiling) == tokens


@settings(max_examples=40)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12))
def test_no_other_sheet_is_closer_in_aspect_ratio(height, width, max_tiles):
    rows, columns = choose_tiling(height, width, max_tiles=max_tiles)
    sheets = [(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= max_tiles]
    assert (rows, columns) in sheets
    best = min(abs(width / height - j / i) for i, j in sheets)
    assert abs(width / height - columns / rows) == best


def test_tiles_go_row_by_row_and_the_thumbnail_is_last():
    image = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    tiled = tile_image(image, tile_size=8, patch_size=4, max_tiles=6)
    assert tiled.grids.tolist() == [[2, 2]] * 7
    tiles = tiled.patches.split(4)
    # The image has just the size of the sheet, 2x3 tiles of 8 pixels: nothing is resampled.
    for index, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        tile = image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        assert torch.equal(tiles[index], resize_and_patchify(tile[None], (2, 2), patch_size=4))
    assert torch.equal(tiles[6], resize_and_patchify(image[None], (2, 2), patch_size=4))


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_counts_agree_with_the_tiles(height, width, thumbnail):
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    tiled = tile_image(image, tile_size=8, patch_size=2, max_tiles=5, thumbnail=thumbnail)
    tiling = choose_tiling(height, width, max_tiles=5, tile_size=8)
    assert len(tiled.grids) == num_tiles(tiling, thumbnail=thumbnail)
    tokens = num_tiling_tokens(tiling, tile_size=8, patch_size=2, thumbnail=thumbnail)
    assert len(tiled.patches) == tiled.grids.prod(-1).sum() == 4 * tokens


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="found 0x5 pixels"):
        choose_tiling(0, 5)
    with pytest.raises(ValueError, match="Tiles of 10 pixels do not divide into patches of 4"):
        num_tiling_tokens((1, 1), tile_size=10, patch_size=4)
