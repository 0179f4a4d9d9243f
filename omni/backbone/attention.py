"""Grouped-query attention without position information.

Order comes from the Mamba layers, so the layer has no rotary or learned positions.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import NemotronHConfig

from omni.backbone.cache import KeyValueState
from omni.backbone.layers import ResidualLinear
from omni.backbone.products import Linear
from omni.backbone.shared_keys import attend_to_shared_keys, suits_shared_keys

# Most entries of a mask that exist at once. PyTorch makes floats of them, on a CPU 8 MiB. Small
# pieces cost there an eighth of the attention of 45,000 keys (measured); an accelerator has the
# memory and needs many queries to be busy.
MAX_MASK_SIZE = 2**26
MAX_CPU_MASK_SIZE = 2**21


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys each query of one forward call may see, made a few queries at a time.

    For a long past the whole of it, queries x keys, would be larger than the keys themselves.
    """

    seq: int
    """New positions: the queries."""
    past: int
    """Positions in the cache; the keys are these and the new ones."""
    key_mask: Bool[Tensor, "batch keys"] | None
    """Which keys are real; None when all are."""
    segment_ids: Int[Tensor, "batch seq"] | None
    """Packed sequences, numbered by `number_runs`; only without a past."""

    def queries_at_once(self, device: torch.device) -> int:
        """How many queries to take at a time so that their mask is not too large."""
        keys = self.key_mask if self.key_mask is not None else self.segment_ids
        batch = 1 if keys is None else max(keys.shape[0], 1)
        size = MAX_CPU_MASK_SIZE if device.type == "cpu" else MAX_MASK_SIZE
        return max(size // (batch * (self.past + self.seq)), 1)

    def rows(
        self, start: int, stop: int, device: torch.device
    ) -> Bool[Tensor, "rows 1 queries keys"]:
        """Return the mask of the queries from `start` to `stop`, up to the last key they see."""
        keys = torch.arange(self.past + stop, device=device)
        itself = keys[self.past + start :, None]
        visible = (keys <= itself)[None, None]
        if self.segment_ids is not None:
            segments = self.segment_ids[:, None, :stop].to(device)
            visible = visible & (segments[:, :, start:, None] == segments[:, :, None])
        if self.key_mask is not None:
            # A padded query still sees itself: a row without any key would become NaN.
            real = self.key_mask[:, None, None, : len(keys)].to(device)
            visible = visible & (real | (keys == itself))
        return visible

    @property
    def is_causal(self) -> bool:
        """Whether nothing is hidden but what comes later."""
        return self.key_mask is None and self.segment_ids is None

    @cached_property
    def lengths(self) -> list[list[int]] | None:
        """Positions of each packed sequence of each row.

        None where nothing is packed. Padding, which is behind all that is real, needs no mask here:
        whoever comes before it does not see it, and what it gives is not read.
        """
        if self.segment_ids is None:
            return None
        changes = (self.segment_ids[:, 1:] != self.segment_ids[:, :-1]).cpu()
        starts = [[0, *(change.nonzero()[:, 0] + 1).tolist()] for change in changes]
        return [[b - a for a, b in pairwise([*row, self.seq])] for row in starts]


class Attention(nn.Module):
    """Causal attention in which `num_attention_heads / num_key_value_heads` queries share a key."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = ResidualLinear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        mask: Mask | None = None,
        state: KeyValueState | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Attend from each position to itself and what came before.

        Args:
            hidden_states: Input.
            mask: Which keys a query may see, from `causal_mask`. None: plain causal.
            state: Keys and values of earlier positions; the new ones are added to it.
        """
        return self.o_proj(self.mix(*self.project(hidden_states), mask, state))

    def project(
        self, hidden_states: Float[Tensor, "batch seq hidden"]
    ) -> tuple[
        Float[Tensor, "batch heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Return queries, keys and values."""
        q, k, v = (
            proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def mix(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads seq head_dim"],
        v: Float[Tensor, "batch kv_heads seq head_dim"],
        mask: Mask | None,
        state: KeyValueState | None,
    ) -> Float[Tensor, "batch seq heads_times_head_dim"]:
        """Attend, to the new positions and those of the state; `forward` without the weights."""
        if state is not None:
            k, v = state.append(k, v)
        if q.shape[2] == 1 and k.shape[0] * k.shape[1] >= torch.get_num_threads():
            return self._attend_once(q, k, v, mask).view(q.shape[0], 1, -1)
        return self._attend(q, k, v, mask).transpose(1, 2).flatten(2)

    def _attend(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads keys head_dim"],
        v: Float[Tensor, "batch kv_heads keys head_dim"],
        mask: Mask | None,
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """Run PyTorch's attention; with a mask a few queries at a time, over the keys they see.

        On some CPUs long prompts without padding have a faster way, see `shared_keys`.

        Packed sequences run one by one on a CPU, where a mask hides keys and saves no work; an
        accelerator wants many queries at once.
        """
        dropout = self.dropout if self.training else 0.0
        has_groups = k.shape[1] != q.shape[1]
        if not dropout and (mask is None or mask.is_causal) and suits_shared_keys(q, k):
            return attend_to_shared_keys(q, k, v)
        if mask is None:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=q.shape[2] > 1, enable_gqa=has_groups
            )
        if q.device.type == "cpu" and mask.lengths:  # without rows there are none
            return self._attend_apart(q, k, v, mask.lengths)
        outputs = []
        for start in range(0, q.shape[2], step := mask.queries_at_once(q.device)):
            visible = mask.rows(start, min(start + step, q.shape[2]), q.device)
            keys = visible.shape[-1]
            outputs.append(
                F.scaled_dot_product_attention(
                    q[:, :, start : start + step],
                    k[:, :, :keys],
                    v[:, :, :keys],
                    attn_mask=visible,
                    dropout_p=dropout,
                    enable_gqa=has_groups,
                )
            )
        return torch.cat(outputs, dim=2)

    def _attend_apart(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads seq head_dim"],
        v: Float[Tensor, "batch kv_heads seq head_dim"],
        lengths: list[list[int]],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """`_attend` of packed sequences, each by itself.

        Split, not sliced: the gradient of a slice is a tensor as large as all sequences together.
        """
        rows = []
        for *row, sizes in zip(q.split(1), k.split(1), v.split(1), lengths, strict=True):
            own_q, own_k, own_v = (heads.split(sizes, dim=2) for heads in row)
            outputs = map(self._attend, own_q, own_k, own_v, [None] * len(sizes))
            rows.append(torch.cat([*outputs], dim=2))
        return torch.cat(rows)

    def _attend_once(
        self,
        q: Float[Tensor, "batch heads 1 head_dim"],
        k: Float[Tensor, "batch kv_heads keys head_dim"],
        v: Float[Tensor, "batch kv_heads keys head_dim"],
        mask: Mask | None,
    ) -> Float[Tensor, "batch kv_heads group head_dim"]:
        """`_attend` of a single position, where every thread finds a head of keys.

        The queries that share keys become queries of one head, so that the keys are read once.
        """
        return F.scaled_dot_product_attention(
            q.view(*k.shape[:2], -1, self.head_dim),
            k,
            v,
            attn_mask=None if mask is None else mask.rows(0, 1, q.device),
            dropout_p=self.dropout if self.training else 0.0,
        )


def causal_mask(
    seq: int,
    past: int,
    *,
    key_mask: Bool[Tensor, "batch keys"] | None,
    segment_ids: Int[Tensor, "batch seq"] | None,
) -> Mask | None:
    """Return the mask of one forward call, or None where plain causal attention is meant.

    Args:
        seq: New positions.
        past: Positions in the cache.
        key_mask: Which of the `past + seq` positions are real; None when all are.
        segment_ids: Packed sequences, numbered by `number_runs`; only without a past.
    """
    if key_mask is None and segment_ids is None and (past == 0 or seq == 1):
        return None
    return Mask(seq=seq, past=past, key_mask=key_mask, segment_ids=segment_ids)
