"""What holds for every reducer and every chain, on any grid and modality."""

import inspect
from dataclasses import replace
from fractions import Fraction
from itertools import product, starmap
from math import ceil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import (
    assert_same_layout,
    features_for,
    full_layout,
    provenance,
    provenance_matrix,
    rates,
    shapes,
)
from token_reduction import (
    REDUCERS,
    STAGES,
    Chain,
    QueryResampler,
    Reducer,
    TokenLayout,
    TokenScorer,
    TokenShape,
    build,
    similarity,
)
from token_reduction.base import count_kept

few = settings(max_examples=40, deadline=None)

# Every reducer stands here once; the laws below run on each of them and on chains.
single_specs: dict[str, st.SearchStrategy[str]] = {
    "identity": st.just("identity"),
    "pixel_shuffle": st.sampled_from(
        ["pixel_shuffle(1.0)", "pixel_shuffle", "pixel_shuffle(0.333)"]
    ),
    "keyframes": rates.map(lambda q: f"keyframes({q!r})"),
    "tubelet": st.integers(1, 4).map(lambda n: f"tubelet({n})"),
    "tome": rates.map(lambda q: f"tome({q!r})"),
    "stack": st.integers(1, 4).map(lambda n: f"stack({n})"),
    "avg_pool": st.integers(1, 4).map(lambda n: f"avg_pool({n})"),
    "merge": rates.map(lambda q: f"merge({q!r})"),
    "prune_merge": rates.map(lambda q: f"prune_merge({q!r})"),
    "cls_prune_merge": rates.map(lambda q: f"cls_prune_merge({q!r})"),
    "divprune": rates.map(lambda q: f"divprune({q!r})"),
    "density_cluster": st.builds(
        lambda q, k: f"density_cluster({q!r}, num_neighbors={k})", rates, st.integers(1, 9)
    ),
    "evs": rates.map(lambda q: f"evs({q!r})")
    | st.builds(lambda q, f: f"evs({q!r}, floor={f})", rates, st.integers(1, 9)),
    "temporal_merge": rates.map(lambda q: f"temporal_merge({q!r})")
    | st.builds(lambda q, f: f"temporal_merge({q!r}, floor={f})", rates, st.integers(1, 9)),
    "adjacent_merge": rates.map(lambda q: f"adjacent_merge({q!r})"),
    "silence": rates.map(lambda q: f"silence({q!r})"),
    "resampler": st.integers(1, 9).map(lambda n: f"resampler({n})"),
    "uniform": rates.map(lambda q: f"uniform({q!r})"),
    "random": st.builds(lambda q, s: f"random({q!r}, seed={s})", rates, st.integers(0, 9)),
}


class UntrainedQueries(QueryResampler):
    """Nine queries for tokens of any width."""

    def __init__(self) -> None:
        super().__init__(dim=1, num_queries=9, hidden=8, num_heads=2)

    def forward(self, x: Tensor, position: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        wide = QueryResampler(x.shape[-1], num_queries=9, hidden=8, num_heads=2)
        return wide(x, position, num_kept)


def opinionated_scorer(dim: int) -> TokenScorer:
    """A scorer that looks at its tokens: an untrained one has zeros in its last layer."""
    scorer = TokenScorer(dim)
    torch.nn.init.normal_(scorer.linear_2.weight)
    return scorer


def ready(spec: str) -> Reducer:
    """Build a reducer, with weights if it needs them."""
    return build(spec).bind({"resampler": UntrainedQueries()})


def takes(reducer: Reducer, shape: TokenShape) -> bool:
    """Whether a reducer has a plan for an item."""
    try:
        reducer.plan(shape)
    except ValueError:
        return False
    return True


@st.composite
def cases(draw: st.DrawFn) -> tuple[Reducer, TokenShape]:
    """An item, and one reducer or a chain in stage order that takes it."""
    shape = draw(shapes)
    drawn = draw(st.lists(st.one_of(*single_specs.values()), min_size=1, max_size=6))
    members, planned = [], shape
    for reducer in sorted(map(ready, drawn), key=lambda reducer: STAGES.index(reducer.stage)):
        try:
            planned = reducer.plan(planned)
        except ValueError:
            continue
        members.append(reducer)
    assume(members)
    return members[0] if len(members) == 1 else Chain(*members), shape


def test_the_laws_run_on_every_reducer() -> None:
    needs_weights = {"learned"}  # its own tests bind a scorer
    assert set(single_specs) == set(REDUCERS) - needs_weights


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 10**6) | st.integers(1, 100), st.integers(1, 4), st.data())
def test_counts_are_those_of_exact_arithmetic_at_any_decimal_rate(
    num_tokens: int, digits: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(0, 10**digits - 1))
    removed = Fraction(parts, 10**digits)
    left = num_tokens * (1 - removed)
    expected = max(1, ceil(left - Fraction(1, 2)))
    for rate in (float(removed), 1 - float(1 - removed)):  # as written, and as computed
        assert count_kept(num_tokens, rate) == expected


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
def test_a_row_is_the_mean_of_its_source_cells_with_the_weights_that_provenance_tells(
    case: tuple[Reducer, TokenShape],
) -> None:
    reducer, shape = case
    # Every cell marks a column of its own; the other columns make the rows more or less alike.
    # Reducers that lay rows side by side keep their weight by place, hence the mean over places.
    marks, likeness = torch.eye(shape.num_tokens), 3 * features_for(shape)
    reduced, layout = reducer(torch.cat([marks, likeness], dim=1), full_layout(shape))
    places = reduced.unflatten(1, (-1, shape.num_tokens + likeness.shape[1]))
    shown = places.mean(dim=1)[:, : shape.num_tokens]
    torch.testing.assert_close(shown, provenance_matrix(layout))


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
    cues = {**full.cues, "cell": cell}
    layout = TokenLayout.full(shape.modality, shape.grid, full.time_spans, cues)
    _, reduced = reducer(features_for(shape), layout)
    for value, sources in zip(reduced.cues["cell"].tolist(), provenance(reduced), strict=True):
        mean = sum(cell * weight for cell, weight in sources.items())
        assert value == pytest.approx(mean, abs=1e-3)


@few
@given(cases(), st.sampled_from([torch.float64, torch.bfloat16, torch.long]))
def test_cues_of_any_dtype_are_averaged_as_float32(
    case: tuple[Reducer, TokenShape], dtype: torch.dtype
) -> None:
    reducer, shape = case
    full = full_layout(shape)
    cell = torch.arange(shape.num_tokens) % 200  # exact in every dtype
    cues = {**full.cues, "cell": cell.to(dtype)}
    _, layout = reducer(features_for(shape), replace(full, cues=cues))
    _, expected = reducer(features_for(shape), replace(full, cues={**cues, "cell": cell.float()}))
    assert torch.equal(layout.cues["cell"].float(), expected.cues["cell"])


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


@pytest.mark.parametrize("name", REDUCERS)
def test_autocast_changes_no_choice(name: str) -> None:
    rate = "rate=0.7" if "rate" in inspect.signature(REDUCERS[name]).parameters else ""
    torch.manual_seed(0)
    reducer = ready("resampler(9)" if name == "resampler" else f"{name}({rate})")
    reducer.bind({"scorer": opinionated_scorer(dim=16)})
    full = [("image", (1, 24, 24)), ("video", (4, 12, 12)), ("audio", (300, 1, 1))]
    taken = [shape for shape in starmap(TokenShape.full, full) if takes(reducer, shape)]
    assert taken
    for shape, seed in product(taken, range(3)):
        features = features_for(shape, dim=16, seed=seed)
        _, expected = reducer(features, full_layout(shape))
        with torch.autocast("cpu", torch.bfloat16):
            _, layout = reducer(features, full_layout(shape))
        for part in ("cells", "source_ptr", "source_cells"):
            assert torch.equal(getattr(layout, part), getattr(expected, part)), (shape, part)


def test_long_items_too_are_compared_in_float32_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = TokenShape.full("image", (1, 24, 24))
    features = features_for(shape, dim=16)
    for name in ("merge", "prune_merge", "density_cluster", "divprune"):
        _, expected = build(f"{name}(0.7)")(features, full_layout(shape))
        with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
            patch.setattr(similarity, "MAX_SCORES", 24 * 24 * 100)  # several pieces
            _, layout = build(f"{name}(0.7)")(features, full_layout(shape))
        assert torch.equal(layout.source_cells, expected.source_cells), name


@pytest.mark.parametrize("name", REDUCERS)
def test_no_reducer_has_state_to_save(name: str) -> None:
    parameters = inspect.signature(REDUCERS[name]).parameters
    reducer = build(f"{name}(rate=0.5)" if "rate" in parameters else name)
    assert not reducer.state_dict()


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
