"""Efficient Video Sampling (https://arxiv.org/abs/2510.14624): drop what did not change.

    d[0, n] = 255
    d[t, n] = 1 - cos(E[t, n], E[t - 1, n])      t >= 1, same place, adjacent steps
    K       = max(N, int(T * N * (1 - q)))

The K tokens with the largest d are kept, ties to the earliest, in their original order.
K depends on the shape alone. The first step is always complete; a later one may be empty.

When a reducer before this one already pruned, each token is compared with the latest
earlier token that is left at its place, one without such a token counts as new (d = 255),
and K counts the tokens that are left. On a full grid both definitions are the same.
"""

# Shape legend
#   T = steps of the grid, N = cells in a step (h * w), C = width, M = tokens (T * N when full)

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_rate
from token_reduction.layout import Grid, TokenLayout, TokenShape

# Dissimilarity of a token with nothing to compare to; any value above the largest 1 - cos.
NEW = 255.0
# Rows compared at once: bounds the float32 copies to about 2 * 4096 rows.
CHUNK_ROWS = 4096


class Evs(Reducer):
    """Keeps the tokens that differ most from the step before.

    Only indices are computed from the features, without gradient; gradients reach kept
    tokens and no others. An image has one step and keeps everything.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "after_projector"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with K tokens.

        Raises:
            ValueError: If the item is audio: it has no cell that two steps share.
        """
        if shape.modality == "audio":
            raise ValueError(
                "Found audio; evs compares the same place of a picture over time and takes only "
                "video and image. Choose uniform or another reducer for audio."
            )
        return TokenShape(
            modality=shape.modality,
            grid=shape.grid,
            num_tokens=evs_num_kept(shape.num_tokens, shape.grid, self.rate),
        )

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched."""
        num_kept = self.num_tokens(layout.shape)
        change = _dissimilarity(features, layout.cells, layout.shape.grid)
        kept = _largest(change, num_kept)
        return features[kept], layout.select(kept)


def evs_num_kept(num_tokens: int, grid: Grid, rate: float) -> int:
    """K: the number of tokens EVS keeps of `num_tokens` on a grid (t, h, w)."""
    _, h, w = grid
    return max(min(h * w, num_tokens), int(num_tokens * (1 - rate)))


def evs_keep_mask(
    features: Float[Tensor, "tokens dim"], grid: Grid, rate: float
) -> Bool[Tensor, " tokens"]:
    """Which tokens of one complete video EVS keeps.

    Args:
        features: Projected embeddings, rows in (t, h, w) order, one for every cell.
        grid: Cells (t, h, w).
        rate: Fraction of tokens to remove, in [0, 1).

    Returns:
        True for kept tokens; exactly `evs_num_kept` of them, on the device of `features`.

    Raises:
        ValueError: If the rows do not fill the grid, or `rate` is outside its range.
    """
    t, h, w = grid
    if len(features) != t * h * w:
        raise ValueError(
            f"Found {len(features)} feature row(s) for grid {grid}; expected {t * h * w}."
        )
    change = _dissimilarity(features, torch.arange(len(features)), grid)
    kept = _largest(change, evs_num_kept(len(features), grid, check_rate(rate)))
    mask = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    mask[kept] = True
    return mask


@torch.no_grad()
def _dissimilarity(
    features: Float[Tensor, "tokens dim"], cells: Int[Tensor, " tokens"], grid: Grid
) -> Float[Tensor, " tokens"]:
    """Compute d for every token, in float32 whatever the features are (bfloat16 ties often)."""
    later, earlier = (index.to(features.device) for index in _pairs_over_time(cells, grid))
    change = torch.full((len(features),), NEW, device=features.device)
    for rows, before in zip(later.split(CHUNK_ROWS), earlier.split(CHUNK_ROWS), strict=True):
        similarity = F.cosine_similarity(features[rows].float(), features[before].float(), dim=-1)
        change[rows] = 1 - similarity
    return change


def _pairs_over_time(
    cells: Int[Tensor, " tokens"], grid: Grid
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """(later, earlier) token indices: same place, neighbours in time among the tokens left."""
    _, h, w = grid
    place = cells % (h * w)
    # Sorted by place, and within a place by time, because cells ascend and the sort is stable.
    order = torch.argsort(place, stable=True)
    same_place = place[order].diff() == 0
    return order[1:][same_place], order[:-1][same_place]


def _largest(change: Float[Tensor, " tokens"], num_kept: int) -> Int[Tensor, " kept"]:
    """Indices of the largest values, ties to the earliest, in ascending order."""
    order = torch.argsort(change, descending=True, stable=True)
    return order[:num_kept].sort().values
