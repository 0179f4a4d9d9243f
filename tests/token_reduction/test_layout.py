"""A layout that contradicts itself cannot be made."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layouts import assert_same_layout, full_layout, provenance, videos
from token_reduction import Modality, TokenLayout, TokenShape, build


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


@settings(max_examples=25, deadline=None)
@given(videos, st.integers(1, 3))
def test_parts_that_were_regrouped_alone_join_to_the_whole(
    shape: TokenShape, tubelets: int
) -> None:
    frames, h, w = shape.grid
    cues = {"energy": torch.arange(shape.num_tokens, dtype=torch.float32)}
    whole = TokenLayout.full("video", shape.grid, full_layout(shape).time_spans, cues)
    parts = []
    for start in range(0, frames, 2 * tubelets):
        stop = min(start + 2 * tubelets, frames)
        spans = (whole.time_spans or ())[start:stop]
        own = {"energy": cues["energy"][start * h * w : stop * h * w]}
        part = TokenLayout.full("video", (stop - start, h, w), spans, own)
        _, part = build("tubelet(2)")(torch.empty(part.shape.num_tokens, 0), part)
        parts.append(part)
    _, expected = build("tubelet(2)")(torch.empty(shape.num_tokens, 0), whole)
    joined = TokenLayout.join(parts)
    assert_same_layout(joined, expected)
    assert torch.equal(joined.cues["energy"], expected.cues["energy"])


def test_joined_parts_may_be_pruned() -> None:
    layout = full_layout(TokenShape.full("video", (2, 1, 2)))
    joined = TokenLayout.join([layout.select(torch.tensor([1, 2])), layout])
    assert joined.cells.tolist() == [1, 2, 4, 5, 6, 7]
    assert joined.shape == TokenShape(modality="video", grid=(4, 1, 2), num_tokens=6)
    assert [list(sources) for sources in provenance(joined)] == [[1], [2], [4], [5], [6], [7]]


@given(st.permutations(["energy", "attention", "cell"]))
def test_parts_may_name_their_cues_in_any_order(names: list[str]) -> None:
    cues = {name: torch.full((2,), float(len(name))) for name in sorted(names)}
    first = TokenLayout.full("audio", (2, 1, 1), cues=cues)
    second = TokenLayout.full("audio", (2, 1, 1), cues={name: cues[name] for name in names})
    joined = TokenLayout.join([first, second])
    assert {name: values.tolist() for name, values in joined.cues.items()} == {
        name: values.tolist() * 2 for name, values in cues.items()
    }


def test_parts_of_different_items_are_not_joined() -> None:
    layout = full_layout(TokenShape.full("video", (2, 1, 2)))
    other = full_layout(TokenShape.full("video", (2, 2, 1)))
    with pytest.raises(ValueError, match=r"Found parts of .*'video', 1, 2.*expected parts of one"):
        TokenLayout.join([layout, other])
    with pytest.raises(ValueError, match=r"Found parts of .*expected parts of one item"):
        TokenLayout.join([layout, replace(layout, time_spans=None)])
    with pytest.raises(ValueError, match=r"Found parts of .*'attention'.*expected parts of one"):
        TokenLayout.join([layout, replace(layout, cues={})])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_adds_up_what_reaches_a_token_twice(dtype: torch.dtype) -> None:
    layout = full_layout(TokenShape.full("audio", (3, 1, 1)))
    overlapping = layout.merge(
        shape=TokenShape.full("audio", (2, 1, 1)),
        cells=torch.arange(2),
        time_spans=((0.0, 1.0), (0.5, 1.5)),
        group_ptr=torch.tensor([0, 2, 4]),
        members=torch.tensor([0, 1, 1, 2]),
        weights=torch.tensor([0.5, 0.5, 0.25, 0.75], dtype=dtype),
    )
    merged = overlapping.merge(
        shape=TokenShape.full("audio", (1, 1, 1)),
        cells=torch.arange(1),
        time_spans=((0.0, 1.5),),
        group_ptr=torch.tensor([0, 2]),
        members=torch.tensor([1, 0]),
        weights=torch.tensor([0.5, 0.5], dtype=dtype),
    )
    assert provenance(overlapping) == [{0: 0.5, 1: 0.5}, {1: 0.25, 2: 0.75}]
    assert provenance(overlapping.select(torch.tensor([1]))) == [{1: 0.25, 2: 0.75}]
    assert provenance(merged) == [{0: 0.25, 1: 0.375, 2: 0.375}]


def test_a_still_image_has_no_time() -> None:
    assert TokenLayout.full("image", (1, 2, 2)).time_spans is None
