"""How a scorer of tokens learns: by trying choices and comparing what they did to the answers.

    kept  = the K largest of s[i] / n + G[i]              G: Gumbel noise, n: its scale
    p     = prod over k of  exp(s[k] / n) / sum over l >= k of exp(s[l] / n)
    grad  = mean over draws d of  (L[d] - mean of the other draws' L) * grad log p[d]

The K largest under Gumbel noise are K draws without replacement in the proportions exp(s / n)
(Gumbel top-k, arXiv 1903.06059), k and l counting in the order of the draw, so log p is exact. The
gradient is that of the expected loss, without bias, for any model behind it (REINFORCE with the
other draws of the same sample as baseline, Kool et al. 2019, openreview r1lgTGL5DE).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from token_reduction import TokenScorer


class Draw:
    """One noisy ranking of the tokens of an item.

    Args:
        logits: Scores over the scale of the noise, with their gradient.
        noisy: The same with noise, without gradient; the largest are kept.
    """

    def __init__(self, logits: Float[Tensor, " tokens"], noisy: Float[Tensor, " tokens"]) -> None:
        self.logits, self.noisy = logits, noisy

    def log_probability(self, count: int) -> Float[Tensor, ""]:
        """How likely the first `count` were to come out, in their order."""
        ranked = self.logits[self.noisy.argsort(descending=True)]
        left = ranked.flip(0).logcumsumexp(0).flip(0)  # of the tokens that are not drawn yet
        return (ranked - left)[:count].sum()


@contextmanager
def exploring(scorers: nn.ModuleDict, noise: float) -> Iterator[list[Draw]]:
    """Let scorers rank tokens with noise.

    Args:
        scorers: `TokenScorer`s; others are left alone.
        noise: Scale of the Gumbel noise on the scores, positive.

    Yields:
        The draws since, one for each item that was scored.
    """
    draws: list[Draw] = []

    def disturb(_module: nn.Module, _arguments: object, scores: Tensor) -> Tensor:
        logits = scores.float() / noise
        gumbel = -torch.empty_like(logits).exponential_().log()
        draws.append(Draw(logits, (logits + gumbel).detach()))
        return draws[-1].noisy

    hooks = [
        scorer.register_forward_hook(disturb)
        for scorer in scorers.values()
        if isinstance(scorer, TokenScorer)
    ]
    try:
        yield draws
    finally:
        for hook in hooks:
            hook.remove()


def policy_loss(
    losses: Float[Tensor, "samples draws"], log_probabilities: Float[Tensor, "samples draws"]
) -> Float[Tensor, ""]:
    """A number whose gradient is that of the expected loss with respect to the scores.

    Losses are measured in their own spread over the batch, so that the learning rate does not
    depend on their size.

    Args:
        losses: Of each sample under each of two or more draws; their gradients are not used.
        log_probabilities: Of these draws.
    """
    losses = losses.detach()
    count = losses.shape[1]
    advantage = (losses - losses.mean(1, keepdim=True)) * count / (count - 1)
    spread = advantage.square().mean().sqrt()
    return (advantage / spread.clamp(min=1e-6) * log_probabilities).mean()
