"""Learning to choose: exact probabilities of draws, gradients without bias, and that it works."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune.exploration import Draw, exploring, policy_loss
from tests.support.layouts import features_for, full_layout
from token_reduction import TokenScorer, TokenShape, build

few = settings(max_examples=40, deadline=None)
scores = st.lists(st.floats(-3, 3), min_size=2, max_size=5).map(torch.tensor)


def draw_in_order(logits: torch.Tensor, order: tuple[int, ...]) -> Draw:
    """The draw in which tokens came out in this order."""
    noisy = torch.zeros(len(logits))
    noisy[list(order)] = torch.arange(len(order), 0, -1.0)
    return Draw(logits, noisy)


def probabilities(logits: torch.Tensor, count: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Of every order in which `count` tokens can come out."""
    orders = permutations(range(len(logits)), count)
    rest = range(len(logits))
    return {
        order: draw_in_order(logits, (*order, *(i for i in rest if i not in order)))
        .log_probability(count)
        .exp()
        for order in orders
    }


@few
@given(scores, st.data())
def test_probabilities_are_those_of_drawing_one_after_the_other(logits, data) -> None:
    count = data.draw(st.integers(1, len(logits)))
    found = probabilities(logits, count)
    assert sum(p.item() for p in found.values()) == pytest.approx(1, abs=1e-5)
    for order, probability in found.items():
        expected, left = 1.0, logits.exp()
        for token in order:
            expected *= (left[token] / left.sum()).item()
            left[token] = 0
        assert probability.item() == pytest.approx(expected, abs=1e-5)


def test_noise_draws_in_these_proportions() -> None:
    torch.manual_seed(0)
    shape = TokenShape.full("image", (1, 2, 2))
    scorer = TokenScorer(dim=5)
    nn.init.normal_(scorer.linear_2.weight)
    features, layout = features_for(shape), full_layout(shape)
    with torch.no_grad(), exploring(nn.ModuleDict({"image": scorer}), 0.5) as draws:
        for _ in range(4000):
            scorer(features, layout)
    found: dict[frozenset[int], int] = {}
    for draw in draws:
        kept = frozenset(draw.noisy.topk(2).indices.tolist())
        found[kept] = found.get(kept, 0) + 1
    expected = probabilities(scorer(features, layout).detach() / 0.5, 2)
    for kept in combinations(range(4), 2):
        share = sum(expected[order].item() for order in permutations(kept))
        error = 4 * (share * (1 - share) / 4000) ** 0.5
        assert found.get(frozenset(kept), 0) / 4000 == pytest.approx(share, abs=error)


@few
@given(scores, st.integers(0, 99))
def test_two_draws_give_the_gradient_of_the_expected_loss(logits, seed) -> None:
    """Averaged over all pairs of draws, each as often as it happens; no sampling."""
    torch.manual_seed(seed)
    logits.requires_grad_()
    kept = probabilities(logits, 1)
    losses = {order: torch.rand(()) for order in kept}
    [expected] = torch.autograd.grad(sum(p * losses[order] for order, p in kept.items()), logits)
    kept = probabilities(logits, 1)
    total = torch.zeros(())
    for one, p in kept.items():
        for two, q in kept.items():
            pair = torch.stack([losses[one], losses[two]])[None]
            logs = torch.stack([p.log(), q.log()])[None]
            spread = (pair[0, 0] - pair[0, 1]).abs().clamp(min=1e-6)  # what it divides by
            total = total + (p * q).detach() * spread * policy_loss(pair, logs)
    [found] = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_without_exploration_answers_never_vary() -> None:
    shape = TokenShape.full("image", (1, 6, 6))
    scorer = TokenScorer(dim=5)
    nn.init.normal_(scorer.linear_2.weight)
    reducer = build("learned(0.5)").bind({"scorer": scorer})
    features, layout = features_for(shape), full_layout(shape)

    def cells() -> tuple[int, ...]:
        return tuple(reducer(features, layout)[1].cells.tolist())

    calm = cells()
    with exploring(nn.ModuleDict({"image": scorer}), 0.5):
        assert len({cells() for _ in range(5)}) > 1
    assert {cells() for _ in range(5)} == {calm}


def test_a_scorer_learns_which_tokens_the_loss_needs() -> None:
    """Only a hidden direction of a token counts; all that is known of a choice is its loss."""
    torch.manual_seed(0)
    scorer = TokenScorer(dim=5, hidden=8)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.03)
    shape = TokenShape.full("image", (1, 6, 6))

    def loss(seed: int, rate: float) -> tuple[torch.Tensor, int]:
        reducer = build(f"learned({rate})").bind({"scorer": scorer})
        kept, _ = reducer(features_for(shape, seed=seed), full_layout(shape))
        return -kept[:, 0].mean(), len(kept)

    for step in range(60):
        losses, logs = [], []
        with exploring(nn.ModuleDict({"image": scorer}), 0.5) as draws:
            for number in range(16):
                found, count = loss(8 * step + number // 2, 0.2 + 0.1 * (number // 2 % 7))
                losses.append(found)
                logs.append(draws.pop().log_probability(count))
        optimizer.zero_grad()
        policy_loss(torch.stack(losses).view(8, 2), torch.stack(logs).view(8, 2)).backward()
        optimizer.step()
    for rate in (0.3, 0.75):
        seeds = range(1000, 1010)
        found = sum(-loss(seed, rate)[0].item() for seed in seeds)
        best = 0.0
        for seed in seeds:
            wanted = features_for(shape, seed=seed)[:, 0]
            best += wanted.topk(loss(seed, rate)[1]).values.mean().item()
        assert found > 0.75 * best
