"""Keep the tokens that are looked at and merge the others into them.

After LLaVA-PruMerge (https://arxiv.org/abs/2403.15388) and VisionZip
(https://arxiv.org/abs/2412.04467):

    a[i]  importance of token i: the cue "attention" (cls_prune_merge), or (prune_merge)
          mean over j of softmax over i of (x[j] . x[i] / sqrt(D)),  rows of unit mean square
    kept  the K tokens with the largest a, ties to the earliest
    y[k] = sum a[i] x[i] / sum a[i]   over k and the tokens whose most similar kept token is k

PruMerge keeps as many tokens as its scores have outliers; here K follows from the rate.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.layout import TokenLayout
from token_reduction.per_picture import Grouping, MergePerPicture, join_nearest
from token_reduction.similarity import largest_per_item, score_chunks, unit_rows

# Weight of a token to which nothing attends: too little to matter, enough to divide by.
LEAST = 1e-30


class PruneMerge(MergePerPicture):
    """Keeps the most important tokens of every picture and merges the others into them.

    Important are tokens that many others resemble: a guess from the tokens alone, for towers
    without a trained class token. `ClsPruneMerge` asks the tower.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    name = "prune_merge"

    def group(
        self, rows: Float[Tensor, "pictures tokens dim"], num_kept: int, layout: TokenLayout
    ) -> Grouping:
        """Rank, keep, let the others join the most similar kept token."""
        unit = unit_rows(rows)
        importance = self.importance(unit, layout)
        kept = largest_per_item(importance, num_kept)
        return Grouping(kept, join_nearest(unit, kept), importance.clamp(min=LEAST))

    def importance(
        self, unit: Float[Tensor, "pictures tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "pictures tokens"]:
        """How important each token is, 0 or more.

        Args:
            unit: Rows of length one.
            layout: What they are.
        """
        return attention_received(unit)


class ClsPruneMerge(PruneMerge):
    """Keeps the tokens that the tower's class tokens look at and merges the others into them.

    Needs the layout's cue `attention`, which the vision tower gives. It is worth as much as the
    class tokens are: a tower whose class tokens were never trained knows no better than chance.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    name = "cls_prune_merge"
    cues = ("attention",)

    def importance(
        self, unit: Float[Tensor, "pictures tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "pictures tokens"]:
        """The cue.

        Raises:
            ValueError: If there is no cue `attention`, or it has values below 0 or that are no
                numbers.
        """
        attention = layout.cues.get("attention")
        if attention is None:
            raise ValueError(
                f"Found cues {sorted(layout.cues)}; {self.name} needs 'attention', how much the "
                "tower looks at each token. Hand it over in TokenLayout.full(..., cues=...), or "
                "choose prune_merge, which does without."
            )
        if not bool((attention >= 0).all()):  # also refuses NaN
            raise ValueError(
                f"Found values down to {attention.min():g} in the cue 'attention'; "
                "expected probabilities. Apply the softmax before handing it over."
            )
        return attention.to(unit.device, torch.float32).view(unit.shape[:2])


@torch.no_grad()
def attention_received(
    unit: Float[Tensor, "pictures tokens dim"],
) -> Float[Tensor, "pictures tokens"]:
    """Mean share of every token's softmax over all tokens that falls to each one.

    Args:
        unit: Rows of length one; sqrt(D) times their dot product is the score of the formula.
    """
    sharpness = unit.shape[2] ** 0.5
    received = unit.new_zeros(unit.shape[:2])
    for _, scores in score_chunks(unit, unit):
        received += (scores * sharpness).softmax(dim=2).sum(dim=1)
    return received / unit.shape[1]
