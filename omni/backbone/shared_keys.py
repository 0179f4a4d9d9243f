"""Causal attention of long prompts on a CPU: few large products instead of one small one a head.

Where many heads of queries share the keys of one (grouped-query attention, arXiv 2305.13245), the
queries of a few positions and all of these heads are the rows of one matrix. Scores and values are
then products of the size that `products.linear` is fastest at, and nothing larger than
`MAX_SCORES` lies between them. On an AMD processor this took half of the time of PyTorch's flash
attention for 2,048 positions (docs/adr/0016).
"""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from omni.backbone.products import linear, prefers_onednn

MAX_SCORES = 2**21  # entries that exist at once: 8 MiB
MIN_SCORES = 2**20  # of all positions; below that, products of many new sizes are not worth it
KEY_STEP = 256  # keys are read in multiples of this: few sizes of products for the library to meet


def suits_shared_keys(q: Tensor, k: Tensor) -> bool:
    """Whether `attend_to_shared_keys` is the faster way, without gradients."""
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == torch.float32
        and q.shape[2] * k.shape[2] >= MIN_SCORES
        and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))
        and prefers_onednn()
    )


def attend_to_shared_keys(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Let the last `seq` of the positions attend to themselves and to all before them.

    Args:
        q: Queries of the last positions.
        k: Keys of all positions.
        v: Values of all positions.
    """
    batch, heads, seq, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    group, past = heads // kv_heads, keys - seq
    step = max(MAX_SCORES // (group * keys), 1)
    q = (q * head_dim**-0.5).view(batch, kv_heads, group, seq, head_dim)
    out = q.new_empty(batch, seq, kv_heads, group, head_dim)
    for row, head in product(range(batch), range(kv_heads)):
        own_k, own_v = k[row, head].contiguous(), v[row, head].contiguous()  # a cache's are so
        for start in range(0, seq, step):
            stop = min(start + step, seq)
            end = min(-(-(past + stop) // KEY_STEP) * KEY_STEP, keys)
            positions = torch.arange(past + start, end)
            later = positions > positions[: stop - start, None]  # (positions, keys)
            rows = q[row, head, :, start:stop].transpose(0, 1).reshape(-1, head_dim)
            scores = linear(rows, own_k[:end]).view(stop - start, group, end)
            scores[..., past + start :].masked_fill_(later[:, None], -torch.inf)
            mixed = linear(scores.softmax(-1).view(-1, end), own_v[:end].t())
            out[row, start:stop, head] = mixed.view(stop - start, group, head_dim)
    return out.flatten(2, 3).transpose(1, 2)
