"""Merging of patches between the attention and the MLP of every block of a ViT.

Which tokens merge is decided by a callable that is handed in; see `token_reduction.tome`. Here
is what it means for the tower: attention that weighs a token by the patches it stands for, and
the way back to one row per patch after the last block.

Shape legend
  n = items, P = patches, T = tokens at present (class and register tokens in front), D = width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Match(Protocol):
    """Which tokens merge into which."""

    @property
    def place(self) -> Int[Tensor, "items tokens"]:
        """For each token before the merge, its row after it."""

    def merge(
        self, values: Float[Tensor, "items tokens dim"], sizes: Float[Tensor, "items tokens"]
    ) -> tuple[Float[Tensor, "items kept dim"], Float[Tensor, "items kept"]]:
        """Replace every target by the mean of itself and its sources, weighted by size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMerging:
    """How a tower merges.

    Attributes:
        match: Called with keys ``(n, T, head_dim)``, how many tokens leave, and how many leading
            tokens take no part.
        rate: Fraction of the patches that are gone after the last block, in [0, 1).
    """

    match: Callable[[Tensor, int, int], Match]
    rate: float


def merge_counts(num_patches: int, num_blocks: int, rate: float) -> list[int]:
    """How many patches leave in each block: equal shares, at most half of those present.

    Args:
        num_patches: Patches of one item.
        num_blocks: Blocks of the tower.
        rate: Fraction that should be gone in the end.
    """
    wanted, counts = int(num_patches * rate), []
    for block in range(num_blocks):
        share = wanted * (block + 1) // num_blocks - wanted * block // num_blocks
        counts.append(min(share, num_patches // 2))
        num_patches -= counts[-1]
    return counts


def run_merging_blocks(
    blocks: Iterable[Any],
    hidden_states: Float[Tensor, "items tokens hidden"],
    merging: TokenMerging,
    num_protected: int,
) -> Float[Tensor, "items tokens hidden"]:
    """Run the blocks of a RADIO tower, merging in each, and spread the result over all patches.

    Args:
        blocks: transformers' `RadioLayer`s.
        hidden_states: What the embeddings gave, `(n, T, D)`.
        merging: What to merge.
        num_protected: Class and register tokens in front; they never merge.

    Returns:
        `(n, T, D)` as it came in: merged patches share one vector.
    """
    blocks = list(blocks)
    items, tokens, _ = hidden_states.shape
    sizes = hidden_states.new_ones(items, tokens, dtype=torch.float32)
    place = torch.arange(tokens, device=hidden_states.device).expand(items, tokens)
    counts = merge_counts(tokens - num_protected, len(blocks), merging.rate)
    for block, count in zip(blocks, counts, strict=True):
        attended, keys = _attend(block.attention, block.norm1(hidden_states), sizes)
        hidden_states = hidden_states + block.drop_path(block.layer_scale1(attended))
        if count:
            match = merging.match(keys, count, num_protected)
            hidden_states, sizes = match.merge(hidden_states, sizes)
            place = match.place.gather(1, place)
        changed = block.mlp(block.norm2(hidden_states))
        hidden_states = hidden_states + block.drop_path(block.layer_scale2(changed))
    return hidden_states.gather(1, place[..., None].expand(-1, -1, hidden_states.shape[2]))


def _attend(
    attention: Any,
    x: Float[Tensor, "items tokens hidden"],
    sizes: Float[Tensor, "items tokens"],
) -> tuple[Float[Tensor, "items tokens hidden"], Float[Tensor, "items tokens head_dim"]]:
    """Attend with every token counted as often as it stands for patches; also the mean key."""
    q, k, v = (
        proj(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # (n, heads, T, head_dim)
    weight = sizes.log().to(q.dtype)[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=weight, scale=attention.scaling)
    return attention.o_proj(mixed.transpose(1, 2).flatten(2)), k.mean(1)
