"""Reducers of sound: stretches of similar frames, quiet steps, frames side by side."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import axis_rows, features_for, full_layout, provenance, rates, sounds
from token_reduction import AdjacentMerge, Modality, Silence, Stack, TokenLayout, TokenShape, build
from token_reduction.base import count_kept

few = settings(max_examples=40, deadline=None)


def slow_segments(rows: Tensor, num_kept: int) -> list[list[int]]:
    """Join the two neighbours whose touching frames are most similar until enough are gone."""
    segments = [[i] for i in range(len(rows))]
    while len(segments) > num_kept:
        similarity = [
            float(torch.cosine_similarity(rows[left[-1]], rows[right[0]], dim=0))
            for left, right in pairwise(segments)
        ]
        best = max(range(len(similarity)), key=lambda i: (similarity[i], -i))
        segments[best : best + 2] = [segments[best] + segments[best + 1]]
    return segments


@few
@given(sounds, rates, st.integers(0, 99), st.booleans())
def test_adjacent_merge_equals_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, ties: bool
) -> None:
    rows = features_for(shape, seed=seed)
    if ties:
        rows = axis_rows(len(rows), generator=torch.Generator().manual_seed(seed))
    segments = slow_segments(rows, count_kept(len(rows), rate))
    reduced, layout = AdjacentMerge(rate)(rows, full_layout(shape))
    assert [list(sources) for sources in provenance(layout)] == segments
    assert layout.cells.tolist() == [segment[0] for segment in segments]
    torch.testing.assert_close(reduced, torch.stack([rows[s].mean(0) for s in segments]))


def test_a_long_sound_does_not_depend_on_the_size_of_the_comparison_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = TokenShape.full("audio", (60, 1, 1))
    _, whole = AdjacentMerge(0.6)(features_for(shape), full_layout(shape))
    for rows in (1, 7, 59):
        monkeypatch.setattr("token_reduction.adjacent_merge.CHUNK_ROWS", rows)
        _, pieces = AdjacentMerge(0.6)(features_for(shape), full_layout(shape))
        assert torch.equal(pieces.cells, whole.cells)


def test_steady_stretches_become_one_token_each() -> None:
    rows = torch.eye(3)[torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 0, 0])]
    shape = TokenShape.full("audio", (10, 1, 1))
    reduced, layout = AdjacentMerge(0.6)(rows, full_layout(shape))
    assert reduced.argmax(dim=1).tolist() == [0, 1, 2, 0]
    assert layout.tokens_per_step == (1, 0, 0, 1, 1, 0, 0, 0, 1, 0)
    assert layout.time_spans == full_layout(shape).time_spans


@few
@given(sounds, rates, st.lists(st.sampled_from([-60.0, -30.0, -6.0]), min_size=40, max_size=40))
def test_silence_keeps_the_loudest_steps_ties_to_the_earliest(
    shape: TokenShape, rate: float, levels: list[float]
) -> None:
    energy = levels[: shape.num_tokens]
    layout = TokenLayout.full("audio", shape.grid, cues={"energy": torch.tensor(energy)})
    features = features_for(shape)
    reduced, kept = Silence(rate)(features, layout)
    by_loudness = sorted(range(len(energy)), key=lambda i: (-energy[i], i))
    expected = sorted(by_loudness[: count_kept(len(energy), rate)])
    assert kept.cells.tolist() == expected
    assert torch.equal(reduced, features[expected])


def test_digital_silence_is_the_quietest_of_all() -> None:
    energy = torch.tensor([-90.0, -torch.inf, -20.0])
    layout = TokenLayout.full("audio", (3, 1, 1), cues={"energy": energy})
    _, kept = Silence(0.3)(torch.ones(3, 2), layout)
    assert kept.cells.tolist() == [0, 2]


def test_silence_without_energy_says_what_to_hand_over() -> None:
    layout = TokenLayout.full("audio", (3, 1, 1), cues={"attention": torch.ones(3)})
    with pytest.raises(ValueError, match=r"Found cues \['attention'\]; silence needs 'energy'"):
        Silence(0.5)(torch.ones(3, 2), layout)


def test_energy_that_is_no_number_is_refused() -> None:
    energy = torch.tensor([0.0, float("nan"), float("nan")])
    layout = TokenLayout.full("audio", (3, 1, 1), cues={"energy": energy})
    with pytest.raises(ValueError, match="Found 2 NaN in the cue 'energy'; expected decibels"):
        Silence(0.5)(torch.ones(3, 2), layout)


def test_stack_lays_steps_side_by_side_and_repeats_the_last() -> None:
    shape = TokenShape.full("audio", (5, 1, 1))
    rows = features_for(shape)
    reduced, layout = Stack(3)(rows, full_layout(shape))
    expected = torch.stack([rows[[0, 1, 2]].flatten(), rows[[3, 4, 4]].flatten()])
    assert torch.equal(reduced, expected)
    assert provenance(layout)[1] == pytest.approx({3: 1 / 3, 4: 2 / 3})
    assert layout.time_spans == ((0.0, 1.5), (1.5, 2.5))
    assert Stack(3).output_dim(1024) == 3072


@pytest.mark.parametrize("name", ["adjacent_merge(0.5)", "silence(0.5)", "stack"])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_reducers_of_sound_refuse_pictures(name: str, modality: Modality) -> None:
    message = rf"Found {modality}; {name.split('(')[0]} takes only audio"
    with pytest.raises(ValueError, match=message):
        build(name).plan(TokenShape.full(modality, (1, 2, 2)))


def test_stack_needs_a_step_and_a_complete_recording() -> None:
    with pytest.raises(ValueError, match="Found stack of 0 steps; expected at least 1"):
        Stack(0)
    pruned = TokenShape(modality="audio", grid=(8, 1, 1), num_tokens=5)
    with pytest.raises(ValueError, match="Found 5 of 8 tokens; stack needs"):
        Stack(2).plan(pruned)
