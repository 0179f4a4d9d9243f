"""Grouped-query attention without position information.

Order comes from the Mamba layers, so the layer has no rotary or learned positions.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import NemotronHConfig

from omni.backbone.cache import KeyValueState
from omni.backbone.layers import ResidualLinear


class Attention(nn.Module):
    """Causal attention in which `num_attention_heads / num_key_value_heads` queries share a key."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = ResidualLinear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        mask: Bool[Tensor, "rows 1 seq keys"] | None = None,
        state: KeyValueState | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Attend from each position to itself and what came before.

        Args:
            hidden_states: Input.
            mask: True where a query may see a key, from `causal_mask`. None: plain causal.
            state: Keys and values of earlier positions; the new ones are added to it.
        """
        q, k, v = (
            proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads, seq, head_dim)
        if state is not None:
            k, v = state.append(k, v)
        output = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and q.shape[2] > 1,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return self.o_proj(output.transpose(1, 2).flatten(2))


def causal_mask(
    seq: int,
    past: int,
    *,
    key_mask: Bool[Tensor, "batch keys"] | None,
    segment_ids: Int[Tensor, "batch seq"] | None,
    device: torch.device,
) -> Bool[Tensor, "rows 1 seq keys"] | None:
    """Build the mask of one forward call, or None where plain causal attention is meant.

    Args:
        seq: New positions.
        past: Positions in the cache.
        key_mask: Which of the `past + seq` positions are real; None when all are.
        segment_ids: Packed sequences, numbered by `number_runs`; only without a past.
        device: Where to build it.
    """
    if key_mask is None and segment_ids is None and (past == 0 or seq == 1):
        return None
    keys = past + seq
    visible = torch.ones(seq, keys, dtype=torch.bool, device=device).tril(past)[None, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if key_mask is not None:
        # A padded query still sees itself: a row without any key would become NaN.
        itself = torch.ones(seq, keys, dtype=torch.bool, device=device).tril(past).triu(past)
        visible = visible & (key_mask[:, None, None, :] | itself)
    return visible
