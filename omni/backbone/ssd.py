"""The recurrence of Mamba-2, and the chunked scan that computes it with matrix products.

Each head h of group g keeps a state S of shape (head_dim, state) and reads one token after the
other (Dao & Gu, "Transformers are SSMs", arXiv 2405.21060):

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

`A`, `D` and `dt_t` are scalars of the head; `B_t` and `C_t` belong to the group, so all its heads
share them. `ssd_reference` is that loop, `ssd_step` one turn of it, and `ssd_scan` the fast form.

Packing: where `segment_ids` changes from one position to the next, the state starts from zero.
A position with dt = 0 leaves the state exactly as it is; that is how padding is skipped.

Letters: b batch, t and j positions, c chunk, q position within a chunk, g group, r head within its
group (h = g r), p head_dim, n state.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_CHUNK_SIZE = 64
"""Most positions in one matrix product. Any value gives the same result; 32-64 suits a CPU."""
LEAST_LOG = -40.0
"""A decay below e^-40 = 4e-18 counts as that. It is nothing beside what a float32 rounds off, and
the denormal numbers that smaller ones lead to cost a processor ten times as much."""


def ssd_scan(
    x: Float[Tensor, "batch seq heads head_dim"],
    dt: Float[Tensor, "batch seq heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch seq groups state"],
    C: Float[Tensor, "batch seq groups state"],
    D: Float[Tensor, " heads"],
    *,
    initial_state: Float[Tensor, "batch heads head_dim state"] | None = None,
    segment_ids: Int[Tensor, "batch seq"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "batch seq heads head_dim"], Float[Tensor, "batch heads head_dim state"]]:
    """Run the recurrence over a sequence, chunk by chunk.

    Inside a chunk the recurrence is unrolled into one masked product, as in attention; between
    chunks only the state is carried. Everything is laid out as (b, c, g, q, r p), in which the
    heads of a group lie side by side as in the inputs, so that the products with B and C run once
    per group and never repeat them for each head. What is as large as positions times positions is
    made for one head of each group at a time, and so it stays in the processor's cache.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, >= 0, after softplus and clamp. 0 skips the position.
        A: Decay rates, < 0.
        B: Input directions, one per group; `heads` must be a multiple of `groups`.
        C: Output directions, one per group.
        D: Skip weights.
        initial_state: State before the first position; zero by default. It belongs to the segment
            of the first position.
        segment_ids: Packed sequences; a new value starts a new sequence.
        chunk_size: Positions per chunk; by default at most `MAX_CHUNK_SIZE` and all nearly equal.

    Returns:
        Outputs in the dtype of `x`, and the state after the last position, both computed in at
        least float32.
    """
    seq = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    q = min(chunk_size, seq) if chunk_size else math.ceil(seq / math.ceil(seq / MAX_CHUNK_SIZE))
    pad = -seq % q
    inputs = [tensor.to(dtype) for tensor in (x, dt, B, C)]
    if pad:  # the tail has dt = 0
        inputs = [F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, pad)) for tensor in inputs]
    runs = None
    if segment_ids is not None:
        runs = number_runs(segment_ids)
        runs = torch.cat([runs, runs[:, -1:].expand(-1, pad)], dim=1).unflatten(1, (-1, q))
    if initial_state is not None:
        initial_state = initial_state.to(dtype)
    with torch.autocast(x.device.type, enabled=False):  # its products too are in that type
        y, state = _Scan.apply(*inputs, A.to(dtype), D.to(dtype), initial_state, runs, q)
    return y[:, :seq].to(x.dtype), state


@dataclass(frozen=True, slots=True)
class _Chunks:
    """What forward and backward both derive from the inputs, cut into chunks."""

    u: Float[Tensor, "b c g q r p"]  # dt x
    B: Float[Tensor, "b c g q n"]
    C: Float[Tensor, "b c g q n"]
    seen: Bool[Tensor, "... q q"]  # [t, j], whether t may see j
    CB: Float[Tensor, "b c g q q"]  # [t, j], 0 where t must not see j
    s: Float[Tensor, "b c g r q"]  # running sum of dt A
    to_end: Float[Tensor, "b c g q r 1"]  # decay from j to the last position
    from_start: Float[Tensor, "b c g q r 1"]  # decay of the incoming state up to t
    through: Float[Tensor, "b c g 1 r 1"]  # decay of a state that crosses the whole chunk

    @classmethod
    def cut(
        cls, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, runs: Tensor | None, q: int
    ) -> "_Chunks":
        groups = B.shape[2]
        x, dt = _chunked(x, q, groups), _chunked(dt, q, groups)
        u = torch.mul(x, dt[..., None], out=x.new_empty(x.shape))
        B, C = (tensor.unflatten(1, (-1, q)).transpose(2, 3).contiguous() for tensor in (B, C))

        s = (dt * A.view(groups, 1, -1)).cumsum(3)
        # From each position to the last, from before the first to each, through all of the chunk.
        to_end, from_start, through = (
            log.clamp(min=LEAST_LOG).exp_() for log in (s[..., -1:, :] - s, s, s[..., -1, :])
        )
        seen = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
        if runs is not None:
            first_run, last_run = runs[:, :1, 0], runs[:, :, -1]
            entering = torch.cat([first_run, last_run[:, :-1]], dim=1)  # run of the incoming state
            to_end = to_end * (runs == last_run[..., None])[:, :, None, :, None]
            from_start = from_start * (runs == entering[..., None])[:, :, None, :, None]
            through = through * (entering == last_run)[:, :, None, None]
            seen = (seen & (runs[..., :, None] == runs[..., None, :])).unsqueeze(2)
        return cls(
            u=u,
            B=B,
            C=C,
            seen=seen,
            CB=(C @ B.mT).mul_(seen),
            s=s.mT.contiguous(),
            to_end=to_end.unsqueeze(-1),
            from_start=from_start.unsqueeze(-1),
            through=through[..., None, :, None],
        )

    def decay(self, r: int) -> Float[Tensor, "b c g q q"]:
        """[t, j] of a head, exp(s_t - s_j); where t is before j, 1, which `CB` hides."""
        s = self.s[:, :, :, r]
        return (s[..., :, None] - s[..., None, :]).clamp_(LEAST_LOG, 0).exp_()


def _chunked(
    x: Float[Tensor, "batch seq heads *rest"], q: int, groups: int
) -> Float[Tensor, "b c g q r *rest"]:
    """A view that cuts the positions into chunks of q and the heads into groups."""
    return x.unflatten(2, (groups, -1)).unflatten(1, (-1, q)).transpose(2, 3)


def _joined(x: Float[Tensor, "b c g q r *rest"]) -> Float[Tensor, "batch seq heads *rest"]:
    """The reverse of `_chunked`."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _to_rows(
    state: Float[Tensor, "batch heads head_dim state"], groups: int
) -> Float[Tensor, "b g n r p"]:
    """Lay a state out as the scan does, a row per number of `state`."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _from_rows(state: Float[Tensor, "b g n r p"]) -> Float[Tensor, "batch heads head_dim state"]:
    """The reverse of `_to_rows`."""
    return state.permute(0, 1, 3, 4, 2).flatten(1, 2)


def _of_head(x: Float[Tensor, "b c g q r p"], r: int) -> Float[Tensor, "bcg q p"]:
    """A view of one head of each group, for products of all chunks at once."""
    return x[..., r, :].flatten(0, 2)


class _Scan(torch.autograd.Function):
    """The chunked scan and its gradient.

    Saved are the inputs, the outputs and the state at each chunk's ends; the rest is made again.
    With gradients g of the outputs and G of the states, and u = dt x:

        g_u_j = sum_t decay(j -> t) (B_j . C_t) g_t + decay(j -> end) G_end B_j

    The logarithm of the decay enters each output as s_t, each input as -s_j, and the state at the
    end as s_end, and all of them in proportion. So its gradient needs no sum over pairs:

        g_s_t = g_t . (y_t - D x_t) - u_t . g_u_t,   and at the end of a chunk + G_end . S_end
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        A: Tensor,
        D: Tensor,
        initial_state: Tensor | None,
        runs: Tensor | None,
        q: int,
    ) -> tuple[Tensor, Tensor]:
        groups = B.shape[2]
        k = _Chunks.cut(x, dt, B, C, A, runs, q)

        # 1. Within a chunk: y_t = sum_j decay(j -> t) (C_t . B_j) u_j
        Y = torch.empty_like(k.u)  # (b, c, g, q, r, p)
        for r in range(Y.shape[4]):
            mixing = k.decay(r).mul_(k.CB).flatten(0, 2)
            _of_head(Y, r).copy_(mixing @ _of_head(k.u, r))

        # 2. What each chunk adds to the state by its end: sum_j decay(j -> end) B_j u_j^T
        added = k.B.mT @ k.u.mul_(k.to_end).flatten(4)  # (b, c, g, n, r p)

        # 3. Carry the state from chunk to chunk.
        after = added.unflatten(4, (-1, x.shape[3]))  # (b, c, g, n, r, p)
        state = None
        if initial_state is not None:
            state = _to_rows(initial_state, groups).contiguous()
            after[:, 0].addcmul_(state, k.through[:, 0])
        for c in range(1, after.shape[1]):
            after[:, c].addcmul_(after[:, c - 1], k.through[:, c])

        # 4. From the incoming state to the outputs: y_t += decay(start -> t) S_in C_t.
        carried = k.u  # whose place it takes
        for C_row, states, place in zip(k.C, after, carried, strict=True):
            factors = C_row[1:].flatten(0, 1), states[:-1].flatten(3).flatten(0, 1)
            torch.bmm(*factors, out=place[1:].flatten(3).flatten(0, 1))
        Y[:, 1:].addcmul_(carried[:, 1:], k.from_start[:, 1:])
        if state is not None:
            first = (k.C[:, 0] @ state.flatten(3)).view_as(Y[:, 0])
            Y[:, 0].addcmul_(first, k.from_start[:, 0])

        # 5. The skip.
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        scale = D.view(groups, 1, -1, 1)
        torch.addcmul(Y, _chunked(x, q, groups), scale, out=_chunked(y, q, groups))
        ctx.save_for_backward(x, dt, B, C, A, D, initial_state, runs, y, after)
        ctx.q = q
        final = _from_rows(after[:, -1]).clone(memory_format=torch.contiguous_format)
        return y, final  # not a view of all chunks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, B, C, A, D, initial_state, runs, y, after = ctx.saved_tensors
        groups, q = B.shape[2], ctx.q
        k = _Chunks.cut(x, dt, B, C, A, runs, q)
        G_y = _chunked(grad, q, groups).contiguous()  # (b, c, g, q, r, p)

        # 4. and 3. Gradients of the states between chunks, carried backwards.
        G_carried = (G_y * k.from_start).flatten(4)  # (b, c, g, q, r p)
        G_after = torch.empty_like(after)  # (b, c, g, n, r, p)
        G_after[:, :-1] = (k.C[:, 1:].mT @ G_carried[:, 1:]).view_as(G_after[:, 1:])
        G_after[:, -1] = _to_rows(grad_final, groups)
        for c in range(after.shape[1] - 1, 0, -1):
            G_after[:, c - 1].addcmul_(G_after[:, c], k.through[:, c])
        G_C = torch.zeros_like(k.C)
        G_C[:, 1:] = G_carried[:, 1:] @ after[:, :-1].flatten(4).mT
        G_state = None
        if initial_state is not None:
            state = _to_rows(initial_state, groups).contiguous()
            G_C[:, 0] = G_carried[:, 0] @ state.flatten(3).mT
            G_state = (k.C[:, 0].mT @ G_carried[:, 0]).view_as(state)
            G_state = _from_rows(G_state.addcmul_(G_after[:, 0], k.through[:, 0]))

        # 1. Within a chunk.
        G_u, G_CB = torch.empty_like(k.u), torch.zeros_like(k.CB)
        for r in range(G_u.shape[4]):
            decay, G_r = k.decay(r), _of_head(G_y, r)
            G_CB.addcmul_((G_r @ _of_head(k.u, r).mT).view_as(decay), decay)
            mixing = decay.mul_(k.CB).flatten(0, 2)
            _of_head(G_u, r).copy_(mixing.mT @ G_r)
        G_CB.mul_(k.seen)

        # 2. Into the state.
        G_end = G_after.flatten(4)
        G_u.addcmul_((k.B @ G_end).view_as(G_u), k.to_end)
        G_B = k.u.mul_(k.to_end).flatten(4) @ G_end.mT
        G_B += G_CB.mT @ k.C
        G_C += G_CB @ k.B

        # The skip, u = dt x, and the decay.
        G_u = _joined(G_u)
        skip = (grad * x).sum(-1)
        direct = (G_u * x).sum(-1)
        G_s = _chunked((grad * y).sum(-1) - D * skip - dt * direct, q, groups)
        G_s[..., -1, :] += (G_after * after).sum((3, 5))
        G_log = _joined(G_s.flip(3).cumsum(3).flip(3))
        return (
            torch.addcmul(G_u.mul_(dt[..., None]), grad, D[:, None]),
            torch.addcmul(direct, G_log, A),
            G_B.transpose(2, 3).flatten(1, 2),
            G_C.transpose(2, 3).flatten(1, 2),
            (G_log * dt).sum((0, 1)),
            skip.sum((0, 1)),
            G_state,
            None,
            None,
        )


def number_runs(segment_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Number the stretches of equal segment id, so that an id used again is a new segment."""
    changes = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
    return changes.cumsum(1)


def ssd_step(
    x: Float[Tensor, "batch heads head_dim"],
    dt: Float[Tensor, "batch heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch groups state"],
    C: Float[Tensor, "batch groups state"],
    D: Float[Tensor, " heads"],
    state: Float[Tensor, "batch heads head_dim state"],
) -> Float[Tensor, "batch heads head_dim"]:
    """Advance the recurrence by one position, updating `state` in place.

    Returns:
        The output of the position, in the dtype of `x`.
    """
    (batch, heads, head_dim), groups = x.shape, B.shape[1]
    dtype = state.dtype
    dt = dt.to(dtype)
    sizes = (batch, groups, heads // groups * head_dim)  # (b, g, r p); no -1, for there may be no b
    scaled = (x.to(dtype) * dt[..., None]).view(*sizes, 1)
    state.mul_((dt * A.to(dtype)).exp_()[..., None, None])
    grouped = state.view(*sizes, state.shape[-1])
    grouped.addcmul_(scaled, B.to(dtype).unsqueeze(2))
    # C S^T rather than S C: the same product, but several times faster on a CPU
    y = torch.bmm(C.to(dtype).flatten(0, 1).unsqueeze(1), grouped.flatten(0, 1).transpose(1, 2))
    y = y.view(x.shape)
    return y.addcmul_(x.to(dtype), D.to(dtype)[:, None]).to(x.dtype)


def ssd_reference(
    x: Float[Tensor, "batch seq heads head_dim"],
    dt: Float[Tensor, "batch seq heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch seq groups state"],
    C: Float[Tensor, "batch seq groups state"],
    D: Float[Tensor, " heads"],
    *,
    initial_state: Float[Tensor, "batch heads head_dim state"] | None = None,
    segment_ids: Int[Tensor, "batch seq"] | None = None,
) -> tuple[Float[Tensor, "batch seq heads head_dim"], Float[Tensor, "batch heads head_dim state"]]:
    """Run the recurrence one position at a time: the definition, used by the tests.

    Arguments and results are those of `ssd_scan`.
    """
    batch, seq, heads, head_dim = x.shape
    B = B.repeat_interleave(heads // B.shape[2], dim=2)  # (b, t, h, n)
    C = C.repeat_interleave(heads // C.shape[2], dim=2)
    state = x.new_zeros(batch, heads, head_dim, B.shape[-1])
    if initial_state is not None:
        state = initial_state
    outputs = []
    for t in range(seq):
        if segment_ids is not None and t > 0:
            same = segment_ids[:, t] == segment_ids[:, t - 1]
            state = torch.where(same[:, None, None, None], state, 0.0)
        decay = torch.exp(dt[:, t] * A)
        add = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        state = decay[..., None, None] * state + add
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state
