"""The learned scorer: any rate, untouched values, gradients that teach it."""

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
from token_reduction import Learned, Reducer, TokenLayout, TokenScorer, TokenShape, build

ROUNDING = {"atol": 1e-5, "rtol": 1e-4}  # sums in another order, of values about 1
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


def test_gradients_reach_kept_tokens_and_the_whole_scorer() -> None:
    shape = TokenShape.full("video", (4, 3, 3))
    weights = scorer()
    features = features_for(shape).requires_grad_()
    reduced, layout = bound(0.75, weights)(features, full_layout(shape))
    reduced.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.parameters())
    assert features.grad is not None
    assert bool((features.grad[layout.cells].abs().sum(1) > 0).all())


@few
@given(shapes, rates)
def test_a_dropped_token_gets_the_gradient_of_standing_in_for_the_kept(
    shape: TokenShape, rate: float
) -> None:
    class Given(TokenScorer):
        """Scores that are given."""

        def forward(self, features: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
            return given_scores

    x, wish = features_for(shape), features_for(shape, seed=1)
    given_scores = features_for(shape, dim=1, seed=2)[:, 0].requires_grad_()
    reduced, layout = bound(rate, Given(dim=5).eval())(x, full_layout(shape))
    kept = layout.cells.tolist()
    (reduced * wish[kept]).sum().backward()
    for i in range(len(x)):
        gain = torch.zeros(())
        if i not in kept:
            gain = torch.stack([wish[j] @ (x[i] - x[j]) for j in kept]).mean()
        gate = given_scores.detach()[i].sigmoid()
        assert given_scores.grad is not None
        torch.testing.assert_close(given_scores.grad[i], gain * gate * (1 - gate), **ROUNDING)


def test_training_with_noise_tries_other_tokens_and_answers_never_vary() -> None:
    shape = TokenShape.full("image", (1, 6, 6))
    weights, features, layout = scorer(), features_for(shape), full_layout(shape)
    reducer = bound(0.5, weights)
    calm = [reducer(features, layout)[1].cells.tolist() for _ in range(5)]
    assert all(cells == calm[0] for cells in calm)
    weights.train()
    tried = {tuple(reducer(features, layout)[1].cells.tolist()) for _ in range(5)}
    assert len(tried) > 1


def test_the_scorer_learns_which_tokens_the_loss_needs() -> None:
    """Only a hidden direction of a token counts; keeping tokens by chance would gain nothing."""
    weights = TokenScorer(dim=5, hidden=8).train()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.03)
    shape = TokenShape.full("image", (1, 6, 6))

    def wanted(seed: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        features = features_for(shape, seed=seed)
        reduced, _ = bound(rate, weights)(features, full_layout(shape))
        best = features[:, 0].topk(len(reduced)).values.sum()
        return reduced[:, 0].sum(), best

    for seed in range(100):
        optimizer.zero_grad()
        kept, _ = wanted(seed, rate=0.2 + 0.6 * (seed % 7) / 6)
        (-kept).backward()
        optimizer.step()
    weights.eval()
    for rate in (0.3, 0.75):
        pairs = [wanted(seed, rate) for seed in range(1000, 1010)]
        best = sum(most.item() for _, most in pairs)
        assert sum(kept.item() for kept, _ in pairs) > 0.75 * best


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
