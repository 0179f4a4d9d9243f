"""The baselines choose from the number of tokens alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layouts import features_for, full_layout, rates, shapes
from token_reduction import Random, TokenShape, Uniform, build

few = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    ("num_tokens", "rate", "kept"),
    [(10, 0.5, 5), (5, 0.5, 2), (7, 0.5, 3), (10, 0.3, 7), (1, 0.99, 1), (4, 0.99, 1), (9, 0, 9)],
)
@pytest.mark.parametrize("name", ["uniform", "random"])
def test_a_half_is_rounded_down_and_one_token_stays(
    name: str, num_tokens: int, rate: float, kept: int
) -> None:
    shape = TokenShape.full("audio", (num_tokens, 1, 1))
    assert build(f"{name}({rate})").num_tokens(shape) == kept


@few
@given(shapes, rates)
def test_uniform_gaps_differ_by_at_most_one(shape: TokenShape, rate: float) -> None:
    _, layout = Uniform(rate)(features_for(shape), full_layout(shape))
    gaps = layout.cells.diff().tolist()
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_uniform_takes_the_middle_of_each_stretch() -> None:
    shape = TokenShape.full("audio", (12, 1, 1))
    _, layout = Uniform(0.75)(features_for(shape), full_layout(shape))
    assert layout.cells.tolist() == [2, 6, 10]


@few
@given(shapes, rates, st.integers(0, 9))
def test_random_ignores_the_data_and_the_global_seed(
    shape: TokenShape, rate: float, seed: int
) -> None:
    reducer = Random(rate, seed)
    _, first = reducer(features_for(shape, seed=1), full_layout(shape))
    torch.manual_seed(seed + 1)
    _, second = reducer(features_for(shape, seed=2), full_layout(shape))
    assert torch.equal(first.cells, second.cells)


def test_random_changes_with_its_seed() -> None:
    shape = TokenShape.full("audio", (40, 1, 1))
    cells = {
        tuple(Random(0.5, seed)(features_for(shape), full_layout(shape))[1].cells.tolist())
        for seed in range(5)
    }
    assert len(cells) == 5


def test_random_over_many_seeds_favours_no_place() -> None:
    counts = torch.zeros(8)
    for seed in range(400):
        counts[Random(0.5, seed).choose(num_tokens=8, num_kept=4)] += 1
    # 400 draws of one half: standard deviation 10, so 150..250 is five deviations wide.
    assert counts.min() > 150
    assert counts.max() < 250
