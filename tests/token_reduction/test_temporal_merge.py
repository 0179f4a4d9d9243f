"""Temporal merging keeps what EVS keeps and averages the rest into it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import features_for, full_layout, provenance, rates, videos
from token_reduction import Evs, TemporalMerge, TokenLayout, TokenShape, build

few = settings(max_examples=40, deadline=None)


def slow_reference(
    features: Tensor, layout: TokenLayout, starts: list[int]
) -> tuple[Tensor, list[dict[int, float]]]:
    """The formula at the top of the module, one token at a time, in float64."""
    per_step = layout.shape.grid[1] * layout.shape.grid[2]
    cells, sources = layout.cells.tolist(), provenance(layout)
    runs: dict[int, list[int]] = {}
    for token, cell in enumerate(cells):
        here = [s for s in starts if s <= token and cells[s] % per_step == cell % per_step]
        runs.setdefault(max(here), []).append(token)
    rows, members = [], []
    for start in starts:
        sizes = {token: len(sources[token]) for token in runs[start]}
        total = sum(sizes.values())
        rows.append(sum(features[t].double() * size / total for t, size in sizes.items()))
        shares: dict[int, float] = {}
        for token, size in sizes.items():
            for cell, weight in sources[token].items():
                shares[cell] = shares.get(cell, 0.0) + weight * size / total
        members.append(shares)
    return torch.stack(rows), members


@few
@given(videos, rates, st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_temporal_merge_equals_the_slow_reference(
    shape: TokenShape, rate: float, floor: int, seed: int, ties: bool
) -> None:
    features, layout = features_for(shape, seed=seed, ties=ties), full_layout(shape)
    _, kept = Evs(rate, floor)(features, layout)
    expected, members = slow_reference(features, layout, kept.cells.tolist())
    merged, merged_layout = TemporalMerge(rate, floor)(features, layout)
    assert torch.equal(merged_layout.cells, kept.cells)
    torch.testing.assert_close(merged, expected.float())
    for found, wanted in zip(provenance(merged_layout), members, strict=True):
        assert found == pytest.approx(wanted)


@few
@given(videos, rates, st.integers(0, 99))
def test_tokens_count_as_many_times_as_they_have_source_cells(
    shape: TokenShape, rate: float, seed: int
) -> None:
    # Pruned and of unequal sizes: two rounds, the second on what the first left.
    features, layout = TemporalMerge(0.4)(features_for(shape, seed=seed), full_layout(shape))
    _, kept = Evs(rate)(features, layout)
    starts = [layout.cells.tolist().index(cell) for cell in kept.cells.tolist()]
    expected, members = slow_reference(features, layout, starts)
    merged, merged_layout = TemporalMerge(rate)(features, layout)
    torch.testing.assert_close(merged, expected.float())
    for found, wanted in zip(provenance(merged_layout), members, strict=True):
        assert found == pytest.approx(wanted)


@few
@given(videos, rates, st.integers(0, 99))
def test_nothing_is_lost(shape: TokenShape, rate: float, seed: int) -> None:
    _, layout = TemporalMerge(rate)(features_for(shape, seed=seed), full_layout(shape))
    assert sorted(layout.source_cells.tolist()) == list(range(shape.num_tokens))


def test_a_still_place_becomes_its_mean_and_a_change_begins_anew() -> None:
    shape = TokenShape.full("video", (5, 1, 2))
    features = torch.tensor([1.0, 0.0]).repeat(5, 2, 1)
    features[:, 1, 1] = torch.tensor([0.0, 0.1, 0.2, 0.1, 0.1])  # place 1 flickers
    features[3:, 0] = torch.tensor([0.0, 1.0])  # place 0 changes at step 3
    merged, layout = TemporalMerge(0.7)(features.flatten(0, 1), full_layout(shape))
    assert layout.cells.tolist() == [0, 1, 6]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    assert [sorted(sources) for sources in provenance(layout)] == [
        [0, 2, 4],
        [1, 3, 5, 7, 9],
        [6, 8],
    ]


def test_means_of_half_precision_are_taken_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16: a running sum in it would never grow.
    shape = TokenShape.full("video", (600, 1, 1))
    features = torch.ones(600, 4, dtype=torch.bfloat16)
    merged, _ = TemporalMerge(0.999)(features, full_layout(shape))
    assert torch.equal(merged, torch.ones(1, 4, dtype=torch.bfloat16))


def test_audio_is_refused_by_its_own_name() -> None:
    with pytest.raises(ValueError, match="Found audio; temporal_merge compares the same place"):
        build("temporal_merge(0.5)").plan(TokenShape.full("audio", (8, 1, 1)))
