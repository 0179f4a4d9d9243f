"""A layout that contradicts itself cannot be made."""

from dataclasses import replace

import pytest
import torch

from tests.support.layouts import full_layout, provenance
from token_reduction import Modality, TokenLayout, TokenShape


@pytest.mark.parametrize(
    ("modality", "grid", "num_tokens", "message"),
    [
        ("video", (0, 2, 2), 1, r"Found grid \(t, h, w\) = \(0, 2, 2\)"),
        ("image", (2, 2, 2), 8, r"Found an image with grid \(2, 2, 2\); expected t = 1"),
        ("audio", (4, 2, 1), 8, r"Found audio with grid \(4, 2, 1\); expected \(t, 1, 1\)"),
        (
            "video",
            (2, 2, 2),
            9,
            r"Found 9 token\(s\) for grid \(2, 2, 2\); expected between 1 and 8",
        ),
        ("video", (2, 2, 2), 0, r"Found 0 token\(s\)"),
    ],
)
def test_an_impossible_shape_is_refused(
    modality: Modality, grid: tuple[int, int, int], num_tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenShape(modality=modality, grid=grid, num_tokens=num_tokens)


def test_a_layout_whose_parts_disagree_is_refused() -> None:
    layout = full_layout(TokenShape.full("video", (2, 1, 2)))
    one_left = TokenShape(modality="video", grid=(2, 1, 2), num_tokens=1)
    with pytest.raises(
        ValueError, match=r"Found 4 cell\(s\) and 5 source pointer\(s\); expected 1"
    ):
        replace(layout, shape=one_left)
    with pytest.raises(
        ValueError, match=r"Found cells \[0, 2, 1, 3\]; expected strictly ascending"
    ):
        replace(layout, cells=torch.tensor([0, 2, 1, 3]))
    with pytest.raises(ValueError, match=r"Found cells \[0, 1, 2, 4\].*indices below 4"):
        replace(layout, cells=torch.tensor([0, 1, 2, 4]))
    with pytest.raises(ValueError, match=r"Found 3 source cell\(s\) and 3 weight\(s\); expected 4"):
        replace(layout, source_cells=torch.arange(3), source_weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"Found 1 time span\(s\); expected one for each of 2"):
        replace(layout, time_spans=((0.0, 1.0),))


def test_selecting_keeps_the_grid_and_counts_per_step() -> None:
    layout = full_layout(TokenShape.full("video", (3, 1, 2))).select(torch.tensor([0, 1, 5]))
    assert layout.tokens_per_step == (2, 0, 1)
    assert layout.shape == TokenShape(modality="video", grid=(3, 1, 2), num_tokens=3)
    assert provenance(layout) == [{0: 1.0}, {1: 1.0}, {5: 1.0}]


def test_merging_adds_up_what_reaches_a_token_twice() -> None:
    layout = full_layout(TokenShape.full("audio", (3, 1, 1)))
    overlapping = layout.merge(
        shape=TokenShape.full("audio", (2, 1, 1)),
        cells=torch.arange(2),
        time_spans=((0.0, 1.0), (0.5, 1.5)),
        group_ptr=torch.tensor([0, 2, 4]),
        members=torch.tensor([0, 1, 1, 2]),
        weights=torch.tensor([0.5, 0.5, 0.25, 0.75]),
    )
    merged = overlapping.merge(
        shape=TokenShape.full("audio", (1, 1, 1)),
        cells=torch.arange(1),
        time_spans=((0.0, 1.5),),
        group_ptr=torch.tensor([0, 2]),
        members=torch.tensor([1, 0]),
        weights=torch.tensor([0.5, 0.5]),
    )
    assert provenance(overlapping) == [{0: 0.5, 1: 0.5}, {1: 0.25, 2: 0.75}]
    assert provenance(overlapping.select(torch.tensor([1]))) == [{1: 0.25, 2: 0.75}]
    assert provenance(merged) == [{0: 0.25, 1: 0.375, 2: 0.375}]


def test_a_still_image_has_no_time() -> None:
    assert TokenLayout.full("image", (1, 2, 2)).time_spans is None
