"""Learned pruning: a small network scores the tokens, the best K stay.

    s[i]  = a * d[i] + MLP(LayerNorm(x[i]), LayerNorm(x[i] - x[before i]), d[i])
    d[i]  = 1 - cos(x[i], x[before i])       same place, one step earlier; 0 where there is none
    K     = M * (1 - q), a half rounded down, at least 1

Only the order of the scores decides, so one scorer serves every rate. The MLP starts at zero:
an untrained scorer keeps what changed most, as EVS does.

Choosing is not differentiable. The values of kept tokens are untouched, but their gradients also
reach the scores (straight-through estimator, arXiv 1308.3432), as if with gates g = sigmoid(s)

    y[j] = x[j] + sum over dropped i of  g[i] (x[i] - x[j]) / K

had come out: a dropped token could have stood in the places of the kept. The usual gate, x[j] times
g[j], teaches little or the wrong thing: a decoder that begins with a norm does not see the length
of a token, and an answer that is wrong because what mattered was dropped says nothing of it. While
training, Gumbel noise on the scores varies what is kept (Gumbel top-k, arXiv 1903.06059).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from token_reduction.base import Reducer, Stage, check_rate, count_kept
from token_reduction.evs import largest, pairs_over_time
from token_reduction.layout import TokenLayout, TokenShape


class TokenScorer(nn.Module):
    """Says how much each token of an item matters; higher is kept longer.

    Args:
        dim: Width of a token.
        hidden: Width of the network.
        noise: Scale of the Gumbel noise on the scores while training.
    """

    def __init__(self, dim: int, hidden: int = 64, noise: float = 0.5) -> None:
        super().__init__()
        self.noise = noise
        self.norm = nn.LayerNorm(dim)
        self.change_norm = nn.LayerNorm(dim)
        self.linear_1 = nn.Linear(2 * dim + 1, hidden)
        self.linear_2 = nn.Linear(hidden, 1)
        self.change_weight = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, " tokens"]:
        """Score every token of one item, in the dtype of the weights.

        Args:
            features: Tokens as the decoder would read them.
            layout: What they are.
        """
        x = features.to(self.change_weight.dtype)
        later, earlier = (
            index.to(x.device) for index in pairs_over_time(layout.cells, layout.shape.grid)
        )
        change = torch.zeros_like(x).index_copy(0, later, x[later] - x[earlier])
        cosine = F.cosine_similarity(x[later], x[earlier], dim=-1)
        distance = x.new_zeros(len(x)).index_copy(0, later, 1 - cosine)
        seen = torch.cat([self.norm(x), self.change_norm(change), distance[:, None]], dim=-1)
        refined = self.linear_2(F.gelu(self.linear_1(seen))).squeeze(-1)
        return self.change_weight * distance + refined


class Learned(Reducer):
    """Keeps the tokens that a trained scorer ranks highest.

    The scorer belongs to the model's weights: `bind` gives it. Planning works without.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "after_projector"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)
        self.scorer: TokenScorer | None = None

    def bind(self, weights: Mapping[str, nn.Module]) -> Reducer:
        """Take the scorer from `weights`, under its name `scorer`."""
        scorer = weights.get("scorer")
        if isinstance(scorer, TokenScorer):
            self.scorer = scorer
        return self

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with K tokens."""
        return TokenShape(
            modality=shape.modality,
            grid=shape.grid,
            num_tokens=count_kept(shape.num_tokens, self.rate),
        )

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched, gradients reach the scores.

        Raises:
            ValueError: If no scorer was bound.
        """
        if self.scorer is None:
            raise ValueError(
                "learned needs a trained scorer, but this model has none for "
                f"{layout.shape.modality}. Train one, or choose a reducer that needs no training, "
                "such as evs."
            )
        scores = self.scorer(features, layout).float()
        ranked = scores.detach()
        if self.scorer.training and self.scorer.noise:
            gumbel = -torch.empty_like(ranked).exponential_().log()
            ranked = ranked + self.scorer.noise * gumbel
        kept = largest(ranked, self.num_tokens(layout.shape))
        chosen = features[kept]
        if torch.is_grad_enabled():
            chosen = chosen + self._taught(scores.sigmoid(), features.detach(), kept)
        return chosen, layout.select(kept)

    def _taught(
        self,
        gate: Float[Tensor, " tokens"],
        x: Float[Tensor, "tokens dim"],
        kept: Int[Tensor, " kept"],
    ) -> Float[Tensor, "kept dim"]:
        """Zeros, with the gradient of the gates."""
        is_dropped = torch.ones_like(gate)
        is_dropped[kept] = 0
        open_by = (is_dropped * (gate - gate.detach())).to(x.dtype)
        return (open_by @ x - open_by.sum() * x[kept]) / len(kept)
