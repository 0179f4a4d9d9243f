"""From pixels to patch rows: which grid an image or a video frame gets, and its values.

Three steps, in the order of this file:

1. **Grid.** `choose_image_grid` (dynamic resolution) and `choose_video_grid` (one size near a
   target) decide how many patches high and wide the picture becomes. They see sizes only, so a
   processor or planner can count tokens before any pixel is read.
2. **Counts.** `num_image_tokens`, `num_video_tokens`, and `share_image_budget` for several
   images that share one context.
3. **Pixels.** `resize_and_patchify` makes the rows that a tower takes.

A patch is the unit of the vision tower; a token is what the language model gets after
`downsample` x `downsample` patches were folded into one.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

PATCH_SIZE = 16  # pixels a side
DOWNSAMPLE = 2  # patches a side that one token covers; grid sides are multiples of it
MIN_IMAGE_PATCHES = 1024  # smaller images are enlarged: 256 tokens at least
MAX_IMAGE_PATCHES = 13_312  # larger images are shrunk: 3328 tokens at most
VIDEO_TARGET_PATCHES = 1024  # per frame
TEMPORAL_PATCH_SIZE = 2  # frames in a tubelet

# Statistics of CLIP's training images, RGB, for values in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Float pixels held at once while resizing: 16 Mi values are 64 MiB.
_MAX_FLOATS_IN_FLIGHT = 2**24


def choose_image_grid(
    height: int,
    width: int,
    *,
    patch_size: int = PATCH_SIZE,
    min_patches: int = MIN_IMAGE_PATCHES,
    max_patches: int = MAX_IMAGE_PATCHES,
    downsample: int = DOWNSAMPLE,
) -> tuple[int, int]:
    """Choose the patch grid of a still image, close to its own size and aspect ratio.

    The bounds are soft: making both sides a multiple of `downsample` can leave a very long or
    very small image a little outside them, as in the released system.

    Args:
        height: Image height in pixels, at least 1.
        width: Image width in pixels, at least 1.
        patch_size: Side of a patch in pixels.
        min_patches: Images with fewer patches are enlarged, unless `max_patches` equals it.
        max_patches: Images with more patches are shrunk.
        downsample: Both grid sides are a multiple of this.

    Returns:
        `(grid_height, grid_width)` in patches.

    Raises:
        ValueError: If a size is below 1, or `max_patches` holds not even one token.
    """
    _check_size(height, width)
    if max_patches < downsample**2:
        raise ValueError(
            f"max_patches is {max_patches}, but one token needs {downsample**2} patches; "
            f"give a budget of at least {downsample**2}."
        )
    # Python rounds halves to even, and the released system relies on it: 2.5 -> 2, 3.5 -> 4.
    rows = round(height / patch_size + 0.5)
    columns = round(width / patch_size + 0.5)

    shrink = min(1.0, math.sqrt(max_patches / (rows * columns)))
    rows, columns = math.floor(shrink * rows), math.floor(shrink * columns)
    if rows == 0 or columns == 0:
        # Thinner than a patch after shrinking: keep one token across, spend the rest along it.
        longest = max_patches // downsample // downsample * downsample
        along = min(max(rows, columns) // downsample * downsample, longest)
        return (downsample, along) if rows == 0 else (along, downsample)

    if max_patches > min_patches and rows * columns < min_patches:
        enlarge = math.sqrt(min_patches / (rows * columns))
        rows, columns = math.ceil(enlarge * rows), math.ceil(enlarge * columns)

    rows = _round_side(rows, columns, max_patches, downsample)
    columns = _round_side(columns, rows, max_patches, downsample)
    return rows, columns


def choose_video_grid(
    height: int,
    width: int,
    *,
    target_patches: int = VIDEO_TARGET_PATCHES,
    keep_aspect: bool = True,
    downsample: int = DOWNSAMPLE,
) -> tuple[int, int]:
    """Choose the patch grid shared by all frames of a video: about `target_patches` a frame.

    Args:
        height: Frame height in pixels, at least 1.
        width: Frame width in pixels, at least 1.
        target_patches: Patches per frame to come close to; only the aspect ratio of the frame
            matters, its resolution does not.
        keep_aspect: False gives every video the same square grid.
        downsample: Both grid sides are a multiple of this.

    Returns:
        `(grid_height, grid_width)` in patches.

    Raises:
        ValueError: If a size or the target is below 1.
    """
    _check_size(height, width)
    if target_patches < 1:
        raise ValueError(f"target_patches is {target_patches}; it must be at least 1.")
    if not keep_aspect:
        side = max(downsample, math.isqrt(target_patches) // downsample * downsample)
        return side, side

    aspect = width / height
    rows = max(round(math.sqrt(target_patches / aspect)), 1)
    columns = max(round(math.sqrt(target_patches * aspect)), 1)
    # Both sides go up together or down together, unlike those of a still image.
    rows_up, columns_up = _next_multiple(rows, downsample), _next_multiple(columns, downsample)
    if rows_up * columns_up <= target_patches:
        return rows_up, columns_up
    return (
        max(downsample, rows // downsample * downsample),
        max(downsample, columns // downsample * downsample),
    )


def num_image_tokens(grid: tuple[int, int], downsample: int = DOWNSAMPLE) -> int:
    """Count the tokens of one image, without its two delimiters.

    Args:
        grid: `(grid_height, grid_width)` in patches, both multiples of `downsample`.
        downsample: Patches a side that one token covers.

    Raises:
        ValueError: If the grid does not divide into tokens.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or rows % downsample or columns % downsample:
        raise ValueError(
            f"The grid {rows}x{columns} does not divide into tokens of {downsample}x{downsample} "
            "patches; choose it with choose_image_grid or choose_video_grid."
        )
    return rows * columns // downsample**2


def num_video_tokens(
    num_frames: int,
    grid: tuple[int, int],
    *,
    temporal_patch_size: int = TEMPORAL_PATCH_SIZE,
    downsample: int = DOWNSAMPLE,
) -> int:
    """Count the tokens of one video before pruning; an incomplete last tubelet counts whole.

    Args:
        num_frames: Sampled frames, at least 1.
        grid: `(grid_height, grid_width)` of each frame in patches.
        temporal_patch_size: Frames in a tubelet.
        downsample: Patches a side that one token covers.

    Raises:
        ValueError: If there is no frame or the grid does not divide into tokens.
    """
    if num_frames < 1:
        raise ValueError(f"A video needs at least 1 frame, got {num_frames}.")
    num_tubelets = -(-num_frames // temporal_patch_size)
    return num_tubelets * num_image_tokens(grid, downsample)


def share_image_budget(
    sizes: Sequence[tuple[int, int]],
    total_patches: int,
    *,
    patch_size: int = PATCH_SIZE,
    min_patches: int = MIN_IMAGE_PATCHES,
    max_patches: int = MAX_IMAGE_PATCHES,
    downsample: int = DOWNSAMPLE,
) -> list[int]:
    """Share one patch budget among several images, in proportion to what each would use.

    Args:
        sizes: `(height, width)` of each image in pixels.
        total_patches: Patches that all images together may use.
        patch_size: Side of a patch in pixels.
        min_patches: No image is given less than this.
        max_patches: No image is given more than this.
        downsample: Both grid sides are a multiple of this.

    Returns:
        `max_patches` for each image, to be handed to `choose_image_grid`; the grids then sum to
        at most `total_patches`.

    Raises:
        ValueError: If the images do not fit even at `min_patches` each.
    """

    def patches_used(budgets: list[int]) -> list[int]:
        grids = [
            choose_image_grid(
                height,
                width,
                patch_size=patch_size,
                min_patches=min_patches,
                max_patches=budget,
                downsample=downsample,
            )
            for (height, width), budget in zip(sizes, budgets, strict=True)
        ]
        return [rows * columns for rows, columns in grids]

    budgets = [max(min(total_patches, max_patches), min_patches)] * len(sizes)
    for _ in range(10):  # each round lowers the sum; two or three are the rule
        used = patches_used(budgets)
        if sum(used) <= total_patches:
            return budgets
        scale = total_patches / sum(used)
        budgets = [
            min(budget, max(min_patches, int(scale * patches)))
            for budget, patches in zip(budgets, used, strict=True)
        ]

    least = [min_patches] * len(sizes)
    needed = sum(patches_used(least))
    if needed > total_patches:
        raise ValueError(
            f"{len(sizes)} images need {needed} patches at the smallest allowed size "
            f"({min_patches} each), but the budget is {total_patches}; send fewer images, lower "
            "min_patches, or raise the budget."
        )
    return least


def resize_and_patchify(
    images: Shaped[Tensor, "images height width channels"],
    grid: tuple[int, int],
    *,
    patch_size: int = PATCH_SIZE,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> Float[Tensor, "patches values"]:
    """Resize images or frames of one size to a grid, normalise them, and cut them into patches.

    The resize is antialiased bicubic on float values whose overshoot is kept, so a value may
    leave [0, 255] before normalisation, as the released system was trained with. An image that
    already has the size is not resampled. Frames are resized a few at a time, so that memory
    beyond the result does not grow with their number.

    Args:
        images: uint8 RGB, `(images, height, width, 3)`.
        grid: `(grid_height, grid_width)` in patches.
        patch_size: Side of a patch in pixels.
        mean: Per-channel mean for values in [0, 1].
        std: Per-channel standard deviation for values in [0, 1].

    Returns:
        float32 rows `(images * grid_height * grid_width, 3 * patch_size**2)`: images in order,
        patches row by row, values of a patch in (channel, y, x) order.

    Raises:
        ValueError: If `images` is not uint8 RGB or a grid side is below 1.
    """
    num_images, height, width, channels = images.shape
    if images.dtype != torch.uint8 or channels != 3:
        raise ValueError(
            f"Expected uint8 images of shape (images, height, width, 3), found {images.dtype} "
            f"{tuple(images.shape)}; convert to 8-bit RGB first."
        )
    _check_size(height, width)
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"Both sides of the grid must be at least 1, found {rows}x{columns}.")

    size = (rows * patch_size, columns * patch_size)
    offset = torch.tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    patches = torch.empty(
        num_images, rows * columns, 3 * patch_size**2, dtype=torch.float32, device=images.device
    )
    step = max(1, _MAX_FLOATS_IN_FLIGHT // (3 * max(height * width, size[0] * size[1])))
    for start in range(0, num_images, step):
        pixels = images[start : start + step].permute(0, 3, 1, 2).float()  # (n, 3, H, W)
        if (height, width) != size:
            pixels = F.interpolate(
                pixels, size=size, mode="bicubic", align_corners=False, antialias=True
            )
        pixels = (pixels / 255.0 - offset) / scale
        patches[start : start + step] = patchify(pixels, patch_size)
    return patches.flatten(0, 1)


def patchify(
    pixels: Float[Tensor, "images channels height width"], patch_size: int
) -> Float[Tensor, "images patches values"]:
    """Cut images into patches: row by row, the values of a patch in (channel, y, x) order.

    Args:
        pixels: Images whose height and width are multiples of `patch_size`.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If a side is not a multiple of `patch_size`.
    """
    images, channels, height, width = pixels.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{height}x{width} pixels do not divide into patches of {patch_size}x{patch_size}; "
            "resize to a grid first."
        )
    rows, columns = height // patch_size, width // patch_size
    patches = pixels.reshape(images, channels, rows, patch_size, columns, patch_size)
    patches = patches.permute(0, 2, 4, 1, 3, 5)  # (images, rows, columns, channels, y, x)
    return patches.reshape(images, rows * columns, channels * patch_size**2)


def unpatchify(
    patches: Float[Tensor, "images patches values"], grid: tuple[int, int], patch_size: int
) -> Float[Tensor, "images channels height width"]:
    """Put patches back together; the inverse of `patchify`.

    Args:
        patches: Rows of each image, as many as the grid holds.
        grid: `(grid_height, grid_width)` in patches.
        patch_size: Side of a patch in pixels.
    """
    rows, columns = grid
    pixels = patches.reshape(len(patches), rows, columns, -1, patch_size, patch_size)
    pixels = pixels.permute(0, 3, 1, 4, 2, 5)  # (images, channels, rows, y, columns, x)
    return pixels.reshape(len(patches), -1, rows * patch_size, columns * patch_size)


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"An image must be at least 1x1 pixel, found {height}x{width}.")


def _next_multiple(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _round_side(side: int, other: int, max_patches: int, multiple: int) -> int:
    """Round one grid side up to a multiple if the product stays within the budget, else down."""
    up = _next_multiple(side, multiple)
    if up * other <= max_patches or up == side:
        return up
    return max(multiple, up - multiple)
