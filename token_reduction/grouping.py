"""Weighted means of groups of tokens: what every merging reducer does once it has chosen.

y[g] = sum over i in group g of  w[i] x[i] / (sum over i in group g of w[i])
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.layout import TimeSpans, TokenLayout, TokenShape


def group_shares(
    group: Int[Tensor, " tokens"], num_groups: int, weights: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Weights scaled so that they sum to 1 in every group."""
    totals = weights.new_zeros(num_groups).index_add(0, group, weights)
    return weights / totals[group]


def group_sums(
    rows: Float[Tensor, "tokens dim"],
    group: Int[Tensor, " tokens"],
    num_groups: int,
    shares: Float[Tensor, " tokens"],
) -> Float[Tensor, "groups dim"]:
    """Add up `shares * rows` in every group, in float32 or wider, and return the rows' dtype.

    On CUDA the order of addition, hence the last bit, is fixed only under
    `torch.use_deterministic_algorithms(True)`.
    """
    shared = shares[:, None] * rows.to(torch.promote_types(rows.dtype, torch.float32))
    sums = shared.new_zeros(num_groups, rows.shape[1]).index_add(0, group, shared)
    return sums.to(rows.dtype)


def merge_groups(
    features: Float[Tensor, "tokens dim"],
    layout: TokenLayout,
    *,
    group: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    shape: TokenShape,
    cells: Int[Tensor, " groups"],
    time_spans: TimeSpans | None,
) -> tuple[Float[Tensor, "groups dim"], TokenLayout]:
    """Replace every group of tokens by its weighted mean, in features and layout.

    Args:
        features: One row a token.
        layout: What the rows are.
        group: Group of each token, on any device; none of the groups is empty.
        weights: Positive weight of each token, on any device.
        shape: Shape of what comes out.
        cells: Cell of each group in `shape.grid`, ascending, on any device.
        time_spans: (start, end) in seconds for each step t of the new grid.
    """
    num_groups = len(cells)
    group = group.cpu()
    shares = group_shares(group, num_groups, weights.cpu().float())
    device = features.device
    means = group_sums(features, group.to(device), num_groups, shares.to(device))

    by_group = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=num_groups)
    merged = layout.merge(
        shape=shape,
        cells=cells,
        time_spans=time_spans,
        group_ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        members=by_group,
        weights=shares[by_group],
    )
    return means, merged
