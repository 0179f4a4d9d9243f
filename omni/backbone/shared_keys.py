"""Causal attention of long prompts on a CPU: few large products instead of one small one a head.

Where many heads of queries share the keys of one (grouped-query attention, arXiv 2305.13245), the
queries of a few positions and all of these heads are the rows of one matrix. Scores and values are
then products of the size that `products.linear` is fastest at, and nothing larger than
`MAX_SCORES` lies between them. The backward pass makes the scores again, piece by piece, as flash
attention does (arXiv 2205.14135, algorithm 4). On an AMD processor, at released widths,
prompts of 1,000 to 16,000 positions took half of the time of PyTorch's (docs/adr/0016).
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni.backbone.products import linear, prefers_onednn

MAX_SCORES = 2**21  # entries that exist at once: 8 MiB
MIN_SCORES = 2**20  # of all positions; below that, products of many new sizes are not worth it
KEY_STEP = 256  # keys are read in multiples of this: few sizes of products for the library to meet


def suits_shared_keys(q: Tensor, k: Tensor) -> bool:
    """Whether `attend_to_shared_keys` is the faster way."""
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == torch.float32
        and q.shape[2] * k.shape[2] >= MIN_SCORES
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
    mixed: Tensor = _SharedKeys.apply(q, k, v)
    return mixed


class _Piece(NamedTuple):
    """Some positions of one row and one head of keys, as rows (positions x group)."""

    heads: slice
    positions: slice
    keys: slice
    queries: Float[Tensor, "rows head_dim"]
    """Scaled."""
    shares: Float[Tensor, "rows keys"]


def _pieces(
    q: Float[Tensor, "heads seq head_dim"], k: Float[Tensor, "keys head_dim"], head: int, group: int
) -> Iterator[_Piece]:
    """Attention's shares for the queries of one head of keys, some positions at a time."""
    (_, seq, head_dim), keys = q.shape, len(k)
    past, step = keys - seq, max(MAX_SCORES // (group * keys), 1)
    heads = slice(head * group, (head + 1) * group)
    for start in range(0, seq, step):
        stop = min(start + step, seq)
        end = min(-(-(past + stop) // KEY_STEP) * KEY_STEP, keys)
        queries = _rows(q[heads, start:stop]) * head_dim**-0.5
        scores = linear(queries, k[:end]).view(stop - start, group, end)
        places = torch.arange(past + start, end)
        later = places > places[: stop - start, None]  # (positions, keys)
        scores[..., past + start :].masked_fill_(later[:, None], -torch.inf)
        shares = scores.softmax(-1).view(-1, end)
        yield _Piece(heads, slice(start, stop), slice(end), queries, shares)


def _rows(x: Float[Tensor, "group positions head_dim"]) -> Float[Tensor, "rows head_dim"]:
    return x.transpose(0, 1).reshape(-1, x.shape[-1])


def _heads(x: Float[Tensor, "rows head_dim"], group: int) -> Tensor:
    """(group, positions, head_dim), the inverse of `_rows`."""
    return x.view(-1, group, x.shape[-1]).transpose(0, 1)


class _SharedKeys(torch.autograd.Function):
    """`attend_to_shared_keys`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, seq, head_dim = q.shape
        group = heads // k.shape[1]
        out = q.new_empty(batch, seq, heads, head_dim).transpose(1, 2)
        for row, head in product(range(batch), range(k.shape[1])):
            own_k, own_v = k[row, head].contiguous(), v[row, head].contiguous()  # a cache's are
            for piece in _pieces(q[row], own_k, head, group):
                mixed = linear(piece.shares, own_v[piece.keys].t())
                out[row, piece.heads, piece.positions] = _heads(mixed, group)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        group, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x.transpose(2, 3)) for x in (k, v))  # in columns
        for row, head in product(range(len(q)), range(k.shape[1])):
            own_k, own_v = k[row, head].contiguous(), v[row, head].contiguous()
            for piece in _pieces(q[row], own_k, head, group):
                place = (row, piece.heads, piece.positions)
                above = _rows(grad[place])
                mean = (above * _rows(out[place])).sum(-1, keepdim=True)
                change = linear(above, own_v[piece.keys]).sub_(mean).mul_(piece.shares)
                grad_q[place] = _heads(linear(change, own_k[piece.keys].t()) * scale, group)
                grad_k[row, head][:, piece.keys] += linear(piece.queries.t(), change.t())
                grad_v[row, head][:, piece.keys] += linear(above.t(), piece.shares.t())
        return grad_q, grad_k.transpose(2, 3), grad_v.transpose(2, 3)
