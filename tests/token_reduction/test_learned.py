"""The learned scorer: any rate, untouched values."""

import pytest
import torch
from hypothesis import given, settings

from tests.support.layouts import (
    assert_same_layout,
    features_for,
    full_layout,
    provenance,
    rates,
    shapes,
)
from token_reduction import Learned, Reducer, TokenScorer, TokenShape, build

few = settings(max_examples=40, deadline=None)


def scorer(seed: int = 0) -> TokenScorer:
    """A scorer with opinions of its own: no weight is zero."""
    torch.manual_seed(seed)
    made = TokenScorer(dim=5, hidden=8)
    torch.nn.init.normal_(made.linear_2.weight)
    return made.eval()


def bound(rate: float, weights: TokenScorer | None = None) -> Reducer:
    return build(f"learned({rate!r})").bind({"scorer": weights or scorer()})


@few
@given(shapes, rates)
def test_counts_values_and_provenance_are_those_of_a_choice(shape: TokenShape, rate: float) -> None:
    features = features_for(shape)
    reduced, layout = bound(rate)(features, full_layout(shape))
    assert layout.shape == build(f"learned({rate!r})").plan(shape)
    assert torch.equal(reduced, features[layout.cells])
    assert provenance(layout) == [{cell: 1.0} for cell in layout.cells.tolist()]


@few
@given(shapes, rates, rates)
def test_what_a_higher_rate_keeps_a_lower_rate_keeps_too(
    shape: TokenShape, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    features = features_for(shape)
    _, more = bound(low)(features, full_layout(shape))
    _, fewer = bound(high)(features, full_layout(shape))
    assert set(fewer.cells.tolist()) <= set(more.cells.tolist())


@few
@given(shapes, rates)
def test_an_untrained_scorer_keeps_what_changed_most(shape: TokenShape, rate: float) -> None:
    features = features_for(shape)
    _, layout = bound(rate, TokenScorer(dim=5).eval())(features, full_layout(shape))
    t, h, w = shape.grid
    steps = features.view(t, h * w, 5)
    change = torch.zeros(t, h * w)
    change[1:] = 1 - torch.cosine_similarity(steps[1:], steps[:-1], dim=-1)
    order = torch.argsort(change.flatten(), descending=True, stable=True)
    assert layout.cells.tolist() == sorted(order[: layout.shape.num_tokens].tolist())


def test_gradients_reach_the_kept_tokens_and_no_others() -> None:
    shape = TokenShape.full("video", (4, 3, 3))
    features = features_for(shape).requires_grad_()
    reduced, layout = bound(0.75)(features, full_layout(shape))
    reduced.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum(1).nonzero()[:, 0].tolist() == layout.cells.tolist()


def test_streamed_equals_at_once() -> None:
    shape = TokenShape.full("video", (5, 2, 3))
    features, reducer = features_for(shape), bound(0.6)
    whole, whole_layout = reducer(features, full_layout(shape))
    stream = reducer.stream(full_layout(shape))
    for rows in features.split(4):
        stream.push(rows)
    reduced, layout = stream.finish()
    assert torch.equal(whole, reduced)
    assert_same_layout(whole_layout, layout)


def test_a_chain_binds_its_members() -> None:
    weights = scorer()
    chain = build("learned(0.5)|uniform(0.5)").bind({"scorer": weights})
    shape = TokenShape.full("audio", (9, 1, 1))
    assert len(chain(features_for(shape), full_layout(shape))[0]) == chain.num_tokens(shape)


def test_without_a_scorer_it_plans_but_does_not_run() -> None:
    shape = TokenShape.full("audio", (9, 1, 1))
    assert Learned(0.5).num_tokens(shape) == 4
    with pytest.raises(ValueError, match="needs a trained scorer, but this model has none for au"):
        Learned(0.5)(features_for(shape), full_layout(shape))
