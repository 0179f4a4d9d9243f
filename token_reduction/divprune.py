"""DivPrune (https://arxiv.org/abs/2503.02175): keep the tokens that differ most from each other.

    d(i, j)  = 1 - cos(x[i], x[j])
    first    = argmax over i of  min over j != i of d(i, j)
    next     = argmax over i not kept of  min over kept j of d(i, j)      until K are kept

This is the greedy solution of the max-min diversity problem; ties go to the earliest. The
N x N matrix is made in pieces for the first token. If it fits in one piece it is looked up
afterwards, else each of the K steps takes N dot products; memory is bounded either way.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.layout import TokenLayout
from token_reduction.per_picture import PerPicture
from token_reduction.similarity import dot_products, other_chunks, unit_rows


class DivPrune(PerPicture):
    """Keeps the most diverse tokens of every picture, or of a recording as a whole.

    Only indices are computed from the features, without gradient; gradients reach kept
    tokens and no others.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    name = "divprune"

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched."""
        pictures, tokens = self.pictures(layout.shape)
        num_kept = self.num_tokens(layout.shape) // pictures
        chosen = most_diverse(features.unflatten(0, (pictures, tokens)), num_kept)
        first = torch.arange(pictures, device=chosen.device)[:, None] * tokens
        kept = (chosen + first).flatten()
        return features[kept], layout.select(kept)


@torch.no_grad()
def most_diverse(
    features: Float[Tensor, "items tokens dim"], num_kept: int
) -> Int[Tensor, "items kept"]:
    """Ascending indices of the tokens that the greedy search keeps in each item."""
    rows = unit_rows(features)
    items, tokens, _ = rows.shape
    each = torch.arange(items, device=rows.device)

    # First: the smallest distance is 1 - the largest similarity, so all of this is in similarities.
    closest, matrix = [], None
    for _, scores in other_chunks(rows):
        closest.append(scores.amax(dim=2))
        matrix = scores if scores.shape[1] == tokens else None  # fits in one piece: look it up
    chosen = torch.cat(closest, dim=1).argmin(dim=1)

    # Next: inf marks the tokens that are kept already.
    kept, to_kept = [chosen], torch.full((items, tokens), -torch.inf, device=rows.device)
    for _ in range(num_kept - 1):
        if matrix is not None:
            to_chosen = matrix[each, chosen]
        else:
            to_chosen = dot_products(rows, rows[each, chosen, None]).squeeze(2)
        to_kept = torch.maximum(to_kept, to_chosen)
        to_kept[each, chosen] = torch.inf
        chosen = to_kept.argmin(dim=1)
        kept.append(chosen)
    return torch.stack(kept, dim=1).sort(dim=1).values
