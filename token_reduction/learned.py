"""Learned pruning: a small network scores the tokens, the best K stay.

    s[i]  = a * d[i] + MLP(LayerNorm(x[i]), LayerNorm(x[i] - x[before i]), d[i])
    d[i]  = 1 - cos(x[i], x[before i])       same place, one step earlier; 0 where there is none
    K     = M * (1 - q), a half rounded down, at least 1

Only the order of the scores decides, so one scorer serves every rate. The MLP starts at zero:
an untrained scorer keeps what changed most, as EVS does.

Choosing is not differentiable, and nothing here pretends that it were: values and gradients of
kept tokens pass through. A scorer learns from what its choices did to the answers;
`finetune.exploration` varies them and estimates the gradient.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from token_reduction.base import Reducer, Stage, check_rate, count_kept
from token_reduction.evs import largest, pairs_over_time
from token_reduction.layout import TokenLayout, TokenShape


class TokenScorer(nn.Module):
    """Says how much each token of an item matters; higher is kept longer.

    Args:
        dim: Width of a token.
        hidden: Width of the network.
    """

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
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
        """Score every token of one item, in the dtype of the weights even under autocast.

        Args:
            features: Tokens as the decoder would read them.
            layout: What they are.
        """
        with torch.autocast(features.device.type, enabled=False):  # a score decides
            return self._scores(features.to(self.change_weight.dtype), layout)

    def _scores(
        self, x: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, " tokens"]:
        """The formula at the top of this module."""
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
        """Select rows.

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
        kept = largest(scores.detach(), self.num_tokens(layout.shape))
        return features[kept], layout.select(kept)
