"""Clusters around density peaks, one token to a cluster.

DPC-kNN as in TCFormer (https://arxiv.org/abs/2204.08680) and Chat-UniVi
(https://arxiv.org/abs/2311.08046):

    d(i, j)^2 = |x[i] - x[j]|^2 / D               rows of unit mean square: 2 - 2 cos
    rho[i]    = exp(-mean of d(i, j)^2 over the k nearest other tokens j)
    delta[i]  = min d(i, j) over denser j;  max over all j for the densest
    centres   = the K tokens with the largest rho * delta, ties to the earliest

Every other token joins its most similar centre; a cluster becomes the mean of its source
cells. Of two equally dense tokens the earlier counts as denser.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.layout import TokenLayout
from token_reduction.per_picture import Grouping, MergePerPicture, join_nearest, token_sizes
from token_reduction.similarity import largest_per_item, other_chunks, score_chunks, unit_rows


class DensityCluster(MergePerPicture):
    """Averages clusters of similar tokens in every picture.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).
        num_neighbors: k, how many nearest tokens tell the density; all others where fewer.

    Raises:
        ValueError: If `rate` is outside its range, or `num_neighbors` is below 1.
    """

    name = "density_cluster"

    def __init__(self, rate: float, num_neighbors: int = 5) -> None:
        super().__init__(rate)
        if num_neighbors < 1:
            raise ValueError(
                f"Found num_neighbors {num_neighbors} of density_cluster; expected at least 1."
            )
        self.num_neighbors = num_neighbors

    def group(
        self, rows: Float[Tensor, "pictures tokens dim"], num_kept: int, layout: TokenLayout
    ) -> Grouping:
        """Find the centres, let the others join the most similar one."""
        unit = unit_rows(rows)
        centres = density_peaks(unit, num_kept, self.num_neighbors)
        sizes = token_sizes(layout, len(rows))
        return Grouping(centres, join_nearest(unit, centres), sizes.to(rows.device))


@torch.no_grad()
def density_peaks(
    unit: Float[Tensor, "items tokens dim"], num_peaks: int, num_neighbors: int
) -> Int[Tensor, "items peaks"]:
    """Ascending indices of the tokens with the largest rho * delta.

    Args:
        unit: Rows of length one.
        num_peaks: K.
        num_neighbors: k; at most all other tokens are used.
    """
    items, tokens, _ = unit.shape
    if num_peaks == tokens:
        return torch.arange(tokens, device=unit.device).expand(items, tokens)
    k = min(num_neighbors, tokens - 1)

    # 1. Density.
    square_means = [
        _square_distance(scores.topk(k, dim=2).values).mean(dim=2)
        for _, scores in other_chunks(unit)
    ]
    log_density = -torch.cat(square_means, dim=1)
    by_density = log_density.argsort(dim=1, descending=True, stable=True)
    every = torch.arange(tokens, device=unit.device).expand(items, tokens)
    rank = torch.empty_like(by_density).scatter_(1, by_density, every)  # 0 = densest

    # 2. Distance to the nearest denser token.
    closest = []
    for chunk, scores in score_chunks(unit, unit):
        denser = rank[:, None, :] < rank[:, chunk, None]  # (items, chunk, tokens)
        to_denser = scores.masked_fill(~denser, -torch.inf).amax(dim=2)
        farthest = scores.amin(dim=2)
        closest.append(torch.where(rank[:, chunk] == 0, farthest, to_denser))
    square_delta = _square_distance(torch.cat(closest, dim=1))

    # 3. Rank by the logarithm of rho * delta: the product itself could underflow.
    return largest_per_item(log_density + square_delta.log() / 2, num_peaks)


def _square_distance(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squared distance of rows of unit mean square, divided by their width."""
    return (2 - 2 * cosine).clamp(min=0)
