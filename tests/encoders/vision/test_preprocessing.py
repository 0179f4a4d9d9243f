"""Grids, token counts and patch rows of stills and video frames."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.vision import preprocessing
from encoders.vision.preprocessing import (
    IMAGE_MEAN,
    IMAGE_STD,
    choose_image_grid,
    choose_video_grid,
    num_image_tokens,
    num_video_tokens,
    patchify,
    resize_and_patchify,
    share_image_budget,
    unpatchify,
)

pixels = st.integers(1, 8000)
sizes = st.tuples(pixels, pixels)


@pytest.mark.parametrize(
    ("height", "width", "grid", "tokens"),
    [
        (16, 16, (32, 32), 256),
        (512, 512, (32, 32), 256),
        (360, 640, (26, 44), 286),
        (720, 1280, (46, 80), 920),
        (1080, 1920, (68, 120), 2040),
        (2160, 3840, (86, 154), 3311),
        (3000, 2000, (140, 94), 3290),
        (64, 4000, (6, 254), 381),
    ],
)
def test_image_grids_are_those_of_the_released_system(height, width, grid, tokens):
    assert choose_image_grid(height, width) == grid
    assert num_image_tokens(grid) == tokens


@pytest.mark.parametrize(
    ("height", "width", "grid", "tokens"),
    [
        (1080, 1920, (24, 42), 252),
        (90, 160, (24, 42), 252),
        (480, 640, (28, 36), 252),
        (333, 333, (32, 32), 256),
        (1920, 1080, (42, 24), 252),
    ],
)
def test_video_grids_are_those_of_the_released_system(height, width, grid, tokens):
    assert choose_video_grid(height, width) == grid
    assert num_video_tokens(2, grid) == tokens


def test_whole_patches_round_half_to_even():
    # 40 patches stay 40; 41 patches would round up to 42 even if 41 were allowed.
    grids = [choose_image_grid(16 * side, 16 * side)[0] for side in (40, 41, 42, 43)]
    assert grids == [40, 42, 42, 44]


@given(sizes, st.sampled_from([16, 1024]), st.sampled_from([64, 2048, 13312]))
def test_image_grids_divide_into_tokens(size, min_patches, max_patches):
    grid = choose_image_grid(*size, min_patches=min_patches, max_patches=max_patches)
    assert num_image_tokens(grid) == grid[0] * grid[1] // 4 >= 1


@given(st.integers(200, 8000), st.floats(0.2, 5.0))
def test_image_grids_of_ordinary_shape_keep_both_bounds(height, aspect):
    rows, columns = choose_image_grid(height, max(1, round(height * aspect)))
    assert 1024 <= rows * columns <= 13312


@given(st.integers(1, 40), st.integers(200_000, 2_000_000), st.booleans())
def test_a_strip_thinner_than_a_patch_still_gets_a_grid(short, long, upright):
    height, width = (long, short) if upright else (short, long)
    rows, columns = choose_image_grid(height, width)
    assert (rows > columns) == upright
    assert num_image_tokens((rows, columns)) > 0


def test_video_frames_of_any_shape_share_a_square_grid_without_aspect():
    assert choose_video_grid(90, 1600, keep_aspect=False) == (32, 32)
    assert choose_video_grid(90, 1600, target_patches=1100, keep_aspect=False) == (32, 32)


def test_an_incomplete_tubelet_counts_whole():
    assert [num_video_tokens(n, (24, 42)) for n in (1, 2, 3, 4)] == [252, 252, 504, 504]


@given(st.lists(sizes, min_size=1, max_size=12), st.integers(12 * 1024, 60_000))
def test_a_shared_budget_is_kept_and_no_image_falls_below_its_share(images, total):
    budgets = share_image_budget(images, total)
    grids = [
        choose_image_grid(*size, max_patches=budget)
        for size, budget in zip(images, budgets, strict=True)
    ]
    assert sum(rows * columns for rows, columns in grids) <= total
    assert all(1024 <= budget <= 13312 for budget in budgets)


def test_a_budget_that_suffices_changes_nothing():
    assert share_image_budget([(720, 1280), (100, 100)], 20_000) == [13312, 13312]
    assert share_image_budget([], 0) == []


def test_large_images_give_way_to_small_ones_in_a_shared_budget():
    assert share_image_budget([(3000, 2000), (100, 100)], 8000)[1] == 1024


def test_images_that_cannot_fit_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"3 images need 3072 patches .* budget is 2000"):
        share_image_budget([(512, 512)] * 3, 2000)


@pytest.mark.parametrize("function", [choose_image_grid, choose_video_grid])
def test_images_without_pixels_are_refused(function):
    with pytest.raises(ValueError, match="at least 1x1 pixel, found 0x5"):
        function(0, 5)


def test_budgets_below_one_token_are_refused():
    with pytest.raises(ValueError, match="max_patches is 3"):
        choose_image_grid(10, 10, max_patches=3)
    with pytest.raises(ValueError, match="target_patches is 0"):
        choose_video_grid(10, 10, target_patches=0)


def test_counts_refuse_what_they_cannot_count():
    with pytest.raises(ValueError, match="grid 3x4 does not divide"):
        num_image_tokens((3, 4))
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        num_video_tokens(0, (4, 4))


def test_patches_go_row_by_row_with_values_by_channel():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    # Second patch of the second image: rows 0-1, columns 2-3, red first.
    assert patches[1, 1].tolist() == images[1, :, 0:2, 2:4].flatten().tolist()
    assert patches[1, 3].tolist() == images[1, :, 2:4, 0:2].flatten().tolist()


def test_unpatchify_undoes_patchify():
    images = torch.rand(2, 6, 8, 12)
    assert torch.equal(unpatchify(patchify(images, 4), (2, 3), 4), images)


def test_an_image_that_fits_is_not_resampled():
    image = torch.randint(0, 256, (1, 8, 12, 3), dtype=torch.uint8)
    rows = resize_and_patchify(image, (2, 3), patch_size=4)
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    expected = ((image.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert torch.equal(unpatchify(rows.unsqueeze(0), (2, 3), 4), expected)


def test_overshoot_of_the_resize_is_kept():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[:, :, 4:] = 255
    rows = resize_and_patchify(image, (8, 8), patch_size=4, mean=(0, 0, 0), std=(1, 1, 1))
    assert rows.min() < 0
    assert rows.max() > 1


def test_frames_are_the_same_together_alone_and_in_any_memory(monkeypatch):
    frames = torch.randint(0, 256, (5, 9, 15, 3), dtype=torch.uint8)
    together = resize_and_patchify(frames, (4, 6), patch_size=4)
    alone = [resize_and_patchify(frame[None], (4, 6), patch_size=4) for frame in frames]
    monkeypatch.setattr(preprocessing, "_MAX_FLOATS_IN_FLIGHT", 3 * 16 * 24 * 2)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, resize_and_patchify(frames, (4, 6), patch_size=4))
    assert together.shape == (5 * 24, 48)
    assert math.isclose(together.mean(), 0, abs_tol=1.5)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 4, dtype=torch.uint8)]
)
def test_pixels_that_are_not_8_bit_rgb_are_refused(images):
    with pytest.raises(ValueError, match=r"Expected uint8 .* found torch"):
        resize_and_patchify(images, (2, 2))


def test_grids_and_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found 0x2"):
        resize_and_patchify(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), (0, 2))
    with pytest.raises(ValueError, match="5x4 pixels do not divide into patches of 2x2"):
        patchify(torch.zeros(1, 3, 5, 4), 2)
