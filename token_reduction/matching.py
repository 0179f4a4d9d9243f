"""Bipartite soft matching (ToMe, https://arxiv.org/abs/2210.09461): who merges into whom.

1. Tokens are dealt out in turn to two sets, A and B.
2. Every token of A proposes the token of B with the most similar key (cosine).
3. The r best proposals are accepted; those tokens of A merge into their partner.

Several tokens of A may merge into the same token of B; no token of B ever leaves, so at most
half of the tokens go. Match once with `bipartite_match`, apply to anything with `Match.merge`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.grouping import group_shares, group_sums
from token_reduction.similarity import nearest, unit_rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """Which tokens of each item merge into which, as indices into its tokens.

    Attributes:
        source: Tokens that leave, the most similar pair first.
        target: The token into which each of them merges; one token may stand here repeatedly.
        kept: Tokens that stay, ascending.
    """

    source: Int[Tensor, "items merged"]
    target: Int[Tensor, "items merged"]
    kept: Int[Tensor, "items kept"]

    @property
    def place(self) -> Int[Tensor, "items tokens"]:
        """For each token before the merge, its row after it: an index into `kept`."""
        items, num_kept = self.kept.shape
        rows = torch.arange(num_kept, device=self.kept.device).expand(items, num_kept)
        place = self.kept.new_zeros(items, num_kept + self.source.shape[1])
        place = place.scatter(1, self.kept, rows)
        return place.scatter(1, self.source, place.gather(1, self.target))

    def merge(
        self, values: Float[Tensor, "items tokens dim"], sizes: Float[Tensor, "items tokens"]
    ) -> tuple[Float[Tensor, "items kept dim"], Float[Tensor, "items kept"]]:
        """Replace every target by the mean of itself and its sources, weighted by size.

        Differentiable in `values`; a token that nothing merged into stays as it is, bit by bit.

        Args:
            values: What to merge; need not be the keys of the match.
            sizes: How many original tokens each one stands for; ones before the first merge.

        Returns:
            The merged values, and the sizes that they have now.
        """
        items, num_kept = self.kept.shape
        first = torch.arange(items, device=self.kept.device)[:, None] * num_kept
        group, num_groups = (self.place + first).flatten(), items * num_kept
        flat_sizes = sizes.flatten().float()
        shares = group_shares(group, num_groups, flat_sizes)
        means = group_sums(values.flatten(0, 1), group, num_groups, shares)
        merged_sizes = flat_sizes.new_zeros(num_groups).index_add(0, group, flat_sizes)
        return means.unflatten(0, (items, num_kept)), merged_sizes.view(items, num_kept)


@torch.no_grad()
def bipartite_match(
    keys: Float[Tensor, "items tokens dim"], num_merged: int, num_protected: int = 0
) -> Match:
    """Match the tokens of every item; ties go to the earliest token of A, then of B.

    Args:
        keys: What is compared; in an attention block the mean of its keys over the heads.
        num_merged: r, tokens that leave each item; at most half of the unprotected ones.
        num_protected: Leading tokens, such as class and register tokens, that take no part.

    Raises:
        ValueError: If `num_merged` or `num_protected` is outside its range.
    """
    items, num_tokens, _ = keys.shape
    if not 0 <= num_protected <= num_tokens:
        raise ValueError(
            f"Found {num_protected} protected token(s) of {num_tokens}; "
            f"expected between 0 and {num_tokens}."
        )
    most = (num_tokens - num_protected) // 2
    if not 0 <= num_merged <= most:
        raise ValueError(
            f"Found {num_merged} token(s) to merge of {num_tokens}, {num_protected} of them "
            f"protected; expected between 0 and {most}. Merge more in several rounds."
        )
    every = torch.arange(num_tokens, device=keys.device)
    if num_merged == 0:
        none = every.new_empty(items, 0)
        return Match(source=none, target=none, kept=every.expand(items, num_tokens))

    # 1. Deal out.
    A, B = every[num_protected::2], every[num_protected + 1 :: 2]

    # 2. Propose.
    rows = unit_rows(keys)
    score, partner = nearest(rows[:, A], rows[:, B])  # (items, len(A))

    # 3. Accept the best.
    accepted = score.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
    source, target = A[accepted], B[partner.gather(1, accepted)]

    # A stable sort of "leaves" puts those that stay in front, in order, without waiting for a GPU.
    leaves = torch.zeros(items, num_tokens, dtype=torch.uint8, device=keys.device)
    leaves = leaves.scatter(1, source, 1)
    kept = leaves.argsort(dim=1, stable=True)[:, : num_tokens - num_merged]
    return Match(source=source, target=target, kept=kept)
