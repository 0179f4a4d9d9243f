"""DivPrune keeps what the greedy search over all distances keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import axis_rows, features_for, full_layout, rates, shapes, videos
from token_reduction import DivPrune, TokenShape
from token_reduction.base import count_kept
from token_reduction.divprune import most_diverse

few = settings(max_examples=30, deadline=None)


def slow_reference(rows: Tensor, num_kept: int) -> list[int]:
    """The whole matrix of distances, one choice at a time."""
    distance = 1 - torch.cosine_similarity(rows[:, None], rows[None], dim=2)
    matrix: list[list[float]] = distance.tolist()
    every = range(len(rows))
    first = [min([matrix[i][j] for j in every if j != i], default=0.0) for i in every]
    kept = [max(every, key=lambda i: (first[i], -i))]
    while len(kept) < num_kept:
        left = [i for i in every if i not in kept]
        kept.append(max(left, key=lambda i: (min(matrix[i][j] for j in kept), -i)))
    return sorted(kept)


@few
@given(shapes.filter(lambda shape: shape.grid[0] == 1 or shape.modality == "audio"), rates)
def test_divprune_equals_the_slow_reference(shape: TokenShape, rate: float) -> None:
    features = features_for(shape)
    expected = slow_reference(features, count_kept(len(features), rate))
    reduced, layout = DivPrune(rate)(features, full_layout(shape))
    assert layout.cells.tolist() == expected
    assert torch.equal(reduced, features[expected])


@few
@given(st.integers(1, 20), rates, st.integers(0, 99))
def test_ties_go_to_the_earliest(tokens: int, rate: float, seed: int) -> None:
    rows = axis_rows(tokens, generator=torch.Generator().manual_seed(seed))
    num_kept = count_kept(tokens, rate)
    assert most_diverse(rows[None], num_kept)[0].tolist() == slow_reference(rows, num_kept)


@few
@given(videos, rates)
def test_every_step_of_a_video_is_pruned_as_an_image_alone(shape: TokenShape, rate: float) -> None:
    features = features_for(shape)
    _, layout = DivPrune(rate)(features, full_layout(shape))
    _, h, w = shape.grid
    picture, cells = TokenShape.full("image", (1, h, w)), []
    for step, rows in enumerate(features.split(h * w)):
        _, alone = DivPrune(rate)(rows, full_layout(picture))
        cells += (alone.cells + step * h * w).tolist()
    assert layout.cells.tolist() == cells


def test_one_token_of_every_kind_is_kept_before_a_second_of_any() -> None:
    rows = torch.eye(4)[torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])]
    kept = most_diverse(rows[None], 4)[0]
    assert rows[kept].argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("numbers", [1, 50, 1000])
def test_the_choice_does_not_depend_on_the_size_of_the_comparison_chunks(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = features_for(TokenShape.full("image", (1, 6, 9)))[None]
    whole = most_diverse(rows, 20)
    monkeypatch.setattr("token_reduction.similarity.MAX_SCORES", numbers)
    assert torch.equal(most_diverse(rows, 20), whole)
