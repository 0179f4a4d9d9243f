"""Token merging (ToMe, https://arxiv.org/abs/2210.09461) of projected tokens.

    until K tokens are left:  match and merge min(left - K, left // 2) of them (`matching.py`)
    y = sum s[i] x[i] / sum s[i]      s[i] = source cells that token i stands for

One round removes up to half; a higher rate takes more rounds, each on the means of the last.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.layout import TokenLayout
from token_reduction.matching import bipartite_match
from token_reduction.per_picture import Grouping, MergePerPicture, token_sizes


class Merge(MergePerPicture):
    """Merges the most similar tokens of every picture until the fraction is gone.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    name = "merge"

    def group(
        self, rows: Float[Tensor, "pictures tokens dim"], num_kept: int, layout: TokenLayout
    ) -> Grouping:
        """Follow every token through the rounds."""
        pictures, tokens, _ = rows.shape
        weights = token_sizes(layout, pictures).to(rows.device)
        sizes = weights
        kept = place = torch.arange(tokens, device=rows.device).expand(pictures, tokens)
        while rows.shape[1] > num_kept:
            left = rows.shape[1]
            match = bipartite_match(rows, min(left - num_kept, left // 2))
            rows, sizes = match.merge(rows, sizes)
            kept, place = kept.gather(1, match.kept), match.place.gather(1, place)
        return Grouping(kept, place, weights)
