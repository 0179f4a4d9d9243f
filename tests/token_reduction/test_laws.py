"""What holds for every reducer and every chain, on any grid and modality."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.layouts import (
    assert_same_layout,
    features_for,
    full_layout,
    provenance,
    rates,
    shapes,
)
from token_reduction import REDUCERS, STAGES, Chain, Reducer, TokenLayout, TokenShape, build

few = settings(max_examples=40, deadline=None)

single_specs = st.one_of(
    st.just("identity"),
    st.sampled_from(["pixel_shuffle(1.0)", "pixel_shuffle", "pixel_shuffle(0.333)"]),
    st.integers(1, 4).map(lambda n: f"tubelet({n})"),
    rates.map(lambda q: f"evs({q!r})"),
    st.builds(lambda q, f: f"evs({q!r}, floor={f})", rates, st.integers(1, 9)),
    rates.map(lambda q: f"uniform({q!r})"),
    st.builds(lambda q, s: f"random({q!r}, seed={s})", rates, st.integers(0, 9)),
)


@st.composite
def specs(draw: st.DrawFn) -> str:
    """A single reducer, or a chain in stage order."""
    parts = draw(st.lists(single_specs, min_size=1, max_size=4))
    order = {"tubelet": 0, "pixel_shuffle": 1}
    return "|".join(sorted(parts, key=lambda part: order.get(part.split("(")[0], 2)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Reducer, TokenShape]:
    """A reducer and an item that it takes."""
    reducer, shape = build(draw(specs())), draw(shapes)
    try:
        reducer.plan(shape)
    except ValueError:
        assume(False)
    return reducer, shape


@few
@given(cases())
def test_what_comes_out_is_exactly_what_was_planned(case: tuple[Reducer, TokenShape]) -> None:
    reducer, shape = case
    reduced, layout = reducer(features_for(shape), full_layout(shape))
    assert layout.shape == reducer.plan(shape)
    assert reduced.shape == (reducer.num_tokens(shape), reducer.output_dim(5))
    assert sum(layout.tokens_per_step) == len(reduced)
    assert len(layout.tokens_per_step) == layout.shape.grid[0]


@few
@given(cases())
def test_provenance_is_a_weighted_mean_of_cells_that_exist(
    case: tuple[Reducer, TokenShape],
) -> None:
    reducer, shape = case
    _, layout = reducer(features_for(shape), full_layout(shape))
    assert layout.source_grid == shape.grid
    for sources in provenance(layout):
        assert list(sources) == sorted(sources)
        assert all(0 <= cell < shape.num_tokens for cell in sources)
        assert sum(sources.values()) == pytest.approx(1.0)


@few
@given(cases())
def test_values_come_from_the_source_cells_and_no_others(case: tuple[Reducer, TokenShape]) -> None:
    reducer, shape = case
    # A row that holds the index of its cell shows after any of these reducers where it came from.
    rows = torch.arange(shape.num_tokens, dtype=torch.float32)[:, None]
    reduced, layout = reducer(rows, full_layout(shape))
    for row, sources in zip(reduced, provenance(layout), strict=True):
        assert {int(value) for value in row} == set(sources)


@few
@given(cases())
def test_time_spans_cover_the_same_time_without_gaps(case: tuple[Reducer, TokenShape]) -> None:
    reducer, shape = case
    before = full_layout(shape)
    _, after = reducer(features_for(shape), before)
    if before.time_spans is None or after.time_spans is None:
        assert before.time_spans is after.time_spans
        return
    assert after.time_spans[0][0] == before.time_spans[0][0]
    assert after.time_spans[-1][1] == before.time_spans[-1][1]
    ends, starts = after.time_spans[:-1], after.time_spans[1:]
    assert all(end[1] == start[0] for end, start in zip(ends, starts, strict=True))


@few
@given(cases(), st.integers(0, 3))
def test_an_item_alone_equals_the_item_among_others(
    case: tuple[Reducer, TokenShape], others: int
) -> None:
    reducer, shape = case
    features, layout = features_for(shape), full_layout(shape)
    alone, layout_alone = reducer(features.clone(), layout)
    for seed in range(others):
        reducer(features_for(shape, seed=seed + 1), full_layout(shape))
    again, layout_again = reducer(features, layout)
    assert torch.equal(alone, again)
    assert_same_layout(layout_alone, layout_again)


@few
@given(cases())
def test_running_a_chain_stage_by_stage_equals_running_it_at_once(
    case: tuple[Reducer, TokenShape],
) -> None:
    reducer, shape = case
    whole, whole_layout = reducer(features_for(shape), full_layout(shape))
    features, layout, planned = features_for(shape), full_layout(shape), shape
    for stage in STAGES:
        part = reducer.part(stage)
        planned = part.plan(planned)
        features, layout = part(features, layout)
    assert planned == reducer.plan(shape)
    assert torch.equal(whole, features)
    assert_same_layout(whole_layout, layout)


@few
@given(cases())
def test_gradients_reach_the_tokens_that_stayed_and_no_others(
    case: tuple[Reducer, TokenShape],
) -> None:
    reducer, shape = case
    features = features_for(shape).requires_grad_()
    reduced, layout = reducer(features, full_layout(shape))
    reduced.sum().backward()
    assert features.grad is not None
    stayed = {cell for sources in provenance(layout) for cell in sources}
    touched = features.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert set(touched) == stayed


@few
@given(cases(), st.integers(1, 9))
def test_streamed_in_pieces_of_any_size_equals_at_once(
    case: tuple[Reducer, TokenShape], piece: int
) -> None:
    reducer, shape = case
    features = features_for(shape)
    whole, whole_layout = reducer(features, full_layout(shape))
    stream = reducer.stream(full_layout(shape))
    for rows in features.split(piece):
        stream.push(rows)
    reduced, layout = stream.finish()
    assert torch.equal(whole, reduced)
    assert_same_layout(whole_layout, layout)


@few
@given(cases())
def test_cues_follow_their_tokens(case: tuple[Reducer, TokenShape]) -> None:
    reducer, shape = case
    full = full_layout(shape)
    cell = torch.arange(shape.num_tokens, dtype=torch.float32)
    layout = TokenLayout.full(shape.modality, shape.grid, full.time_spans, {"cell": cell})
    _, reduced = reducer(features_for(shape), layout)
    for value, sources in zip(reduced.cues["cell"].tolist(), provenance(reduced), strict=True):
        mean = sum(cell * weight for cell, weight in sources.items())
        assert value == pytest.approx(mean, abs=1e-3)


def test_rows_without_values_still_carry_their_layout() -> None:
    shape = TokenShape.full("video", (3, 2, 4))
    reducer = build("tubelet(2)|pixel_shuffle(0.5)|evs(0.5)")
    reduced, layout = reducer(torch.empty(shape.num_tokens, 0), full_layout(shape))
    assert reduced.shape == (2, 0)
    assert layout.shape == reducer.plan(shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_reducer_keeps_the_dtype(dtype: torch.dtype) -> None:
    shape = TokenShape.full("video", (4, 4, 6))
    reducer = build("tubelet(2)|pixel_shuffle(0.5)|evs(0.5)|uniform(0.2)")
    reduced, layout = reducer(features_for(shape).to(dtype), full_layout(shape))
    assert reduced.dtype == dtype
    assert layout.source_weights.dtype == torch.float32


def test_no_reducer_has_state_to_save() -> None:
    reducers = [build("evs(0.5)"), build("uniform(0.5)"), build("random(0.5)"), build("identity")]
    reducers += [build("tubelet"), build("pixel_shuffle"), build("learned(0.5)")]  # bound later
    assert {type(reducer) for reducer in reducers} == set(REDUCERS.values())
    assert not any(reducer.state_dict() for reducer in reducers)


def test_rows_that_do_not_match_the_layout_are_refused() -> None:
    layout = full_layout(TokenShape.full("video", (2, 2, 2)))
    with pytest.raises(ValueError, match=r"Found 7 feature row\(s\) for a layout of 8 token"):
        build("evs(0.5)")(torch.zeros(7, 3), layout)


def test_a_reducer_that_breaks_its_plan_is_caught() -> None:
    class Broken(Chain):
        def plan(self, shape: TokenShape) -> TokenShape:
            return TokenShape(modality=shape.modality, grid=shape.grid, num_tokens=1)

    layout = full_layout(TokenShape.full("audio", (5, 1, 1)))
    with pytest.raises(ValueError, match=r"Broken gave 5 row\(s\).*promised .*num_tokens=1"):
        Broken()(torch.zeros(5, 3), layout)


def test_a_chain_against_the_direction_of_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Evs \(after_projector\) before Tubelet \(frames\)"):
        build("evs(0.5)|tubelet(2)")


def test_chains_are_flat_and_identity_vanishes_in_them() -> None:
    chain = Chain(build("identity|pixel_shuffle"), build("identity"), build("evs(0.5)|evs(0.1)"))
    assert [type(member).__name__ for member in chain.members] == ["PixelShuffle", "Evs", "Evs"]
    assert chain.stage == "before_projector"
