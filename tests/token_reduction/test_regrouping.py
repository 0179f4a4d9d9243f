"""Pixel shuffle and tubelets put every value where the specification says."""

import pytest
import torch

from tests.support.layouts import features_for, full_layout, provenance
from token_reduction import Modality, PixelShuffle, TokenShape, Tubelet, build


def test_pixel_shuffle_lays_two_by_two_cells_side_by_side_row_by_row() -> None:
    shape = TokenShape.full("video", (3, 4, 6))
    features = features_for(shape)
    cells = features.view(3, 4, 6, 5)
    reduced, layout = PixelShuffle(0.5)(features, full_layout(shape))
    for t in range(3):
        for i in range(2):
            for j in range(3):
                expected = torch.cat(
                    [
                        cells[t, 2 * i, 2 * j],
                        cells[t, 2 * i, 2 * j + 1],
                        cells[t, 2 * i + 1, 2 * j],
                        cells[t, 2 * i + 1, 2 * j + 1],
                    ]
                )
                assert torch.equal(reduced[t * 6 + i * 3 + j], expected)
    assert provenance(layout)[4] == {14: 0.25, 15: 0.25, 20: 0.25, 21: 0.25}


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 3), (2, 5, 5)])
def test_pixel_shuffle_refuses_an_odd_side(grid: tuple[int, int, int]) -> None:
    found = rf"Found grid \(t, h, w\) = \({grid[0]}, {grid[1]}, {grid[2]}\).*divisible by 2"
    with pytest.raises(ValueError, match=found):
        PixelShuffle(0.5).plan(TokenShape.full("video", grid))


@pytest.mark.parametrize("ratio", [0.0, -0.5, 0.4, 2.0])
def test_pixel_shuffle_refuses_a_ratio_that_is_not_one_over_a_whole_number(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"Found pixel_shuffle ratio {ratio}"):
        PixelShuffle(ratio)


def test_regrouping_refuses_a_pruned_item() -> None:
    pruned = TokenShape(modality="video", grid=(2, 4, 4), num_tokens=20)
    with pytest.raises(ValueError, match="Found 20 of 32 tokens; pixel_shuffle needs"):
        PixelShuffle(0.5).plan(pruned)
    with pytest.raises(ValueError, match="Found 20 of 32 tokens; tubelet needs"):
        Tubelet(2).plan(pruned)


def test_tubelet_puts_frames_side_by_side_in_time_order_and_repeats_the_last() -> None:
    shape = TokenShape.full("video", (3, 2, 2))
    features = features_for(shape)
    frames = features.view(3, 4, 5)
    reduced, layout = Tubelet(2)(features, full_layout(shape))
    assert torch.equal(reduced[:4], torch.cat([frames[0], frames[1]], dim=1))
    assert torch.equal(reduced[4:], torch.cat([frames[2], frames[2]], dim=1))
    assert provenance(layout)[1] == {1: 0.5, 5: 0.5}
    assert provenance(layout)[5] == {9: 1.0}
    assert layout.time_spans == ((0.0, 1.0), (1.0, 1.5))


def test_a_repeated_frame_weighs_as_often_as_it_occurs() -> None:
    shape = TokenShape.full("video", (6, 1, 1))
    _, layout = Tubelet(4)(features_for(shape), full_layout(shape))
    assert provenance(layout) == [{0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}, {4: 0.25, 5: 0.75}]


def test_tubelets_of_one_frame_change_nothing() -> None:
    shape = TokenShape.full("video", (3, 2, 2))
    features = features_for(shape)
    reduced, layout = Tubelet(1)(features, full_layout(shape))
    assert torch.equal(reduced, features)
    assert layout.time_spans == full_layout(shape).time_spans


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_tubelet_takes_only_video(modality: Modality) -> None:
    with pytest.raises(ValueError, match=f"Found {modality}; tubelet takes only video"):
        build("tubelet(2)").plan(TokenShape.full(modality, (1, 1, 1)))


def test_tubelet_needs_a_frame() -> None:
    with pytest.raises(ValueError, match="Found tubelet of 0 frames"):
        Tubelet(0)


def test_the_released_video_chain_composes_its_provenance() -> None:
    shape = TokenShape.full("video", (3, 2, 2))
    _, layout = build("tubelet(2)|pixel_shuffle(0.5)")(features_for(shape), full_layout(shape))
    first, second = provenance(layout)
    assert first == dict.fromkeys(range(8), 0.125)
    assert second == dict.fromkeys(range(8, 12), 0.25)
    assert build("tubelet(2)|pixel_shuffle(0.5)").output_dim(768) == 768 * 2 * 4
