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

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MAX_CHUNK_SIZE = 64
"""Most positions in one matrix product. Any value gives the same result; 32-64 suits a CPU."""


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
    chunks only the state is carried. Everything is laid out with the position last,
    (b, c, g, r p, q), so that the products with B and C run once per group and never repeat them
    for each head.

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
    batch, seq, heads, head_dim = x.shape
    groups = B.shape[2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    q = min(chunk_size, seq) if chunk_size else math.ceil(seq / math.ceil(seq / MAX_CHUNK_SIZE))
    c = math.ceil(seq / q)
    pad = c * q - seq
    group_shape = (batch, c, groups, heads // groups)

    # 0. Cut into chunks, position last. The padded tail has dt = 0.
    def chunked(tensor: Tensor) -> Tensor:  # (b, t, g.., k) -> (b, c, q, g.., k)
        tensor = tensor.to(dtype)
        if pad:
            tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, pad))
        return tensor.unflatten(1, (c, q))

    X = chunked(x).permute(0, 1, 3, 4, 2).contiguous().view(*group_shape, head_dim, q)
    dt = chunked(dt).transpose(2, 3).reshape(*group_shape, q)
    B = chunked(B).transpose(2, 3)  # (b, c, g, q, n)
    C = chunked(C).permute(0, 1, 3, 4, 2)  # (b, c, g, n, q)
    runs = None
    if segment_ids is not None:
        runs = number_runs(segment_ids)
        runs = torch.cat([runs, runs[:, -1:].expand(-1, pad)], dim=1).unflatten(1, (c, q))

    # 1. decay(j -> t) = exp(s_t - s_j), with s the running sum of dt A inside the chunk.
    s = (dt * A.to(dtype).reshape(groups, -1, 1)).cumsum(-1)  # (b, c, g, r, q)
    hidden = torch.ones(q, q, dtype=torch.bool, device=x.device).tril(-1)  # [j, t]: t before j
    if runs is not None:
        hidden = (hidden | (runs[..., :, None] != runs[..., None, :]))[:, :, None, None]
    decay = (s[..., None, :] - s[..., :, None]).masked_fill_(hidden, -torch.inf).exp_()

    # 2. Within a chunk: y_t += sum_j x_j dt_j decay(j -> t) (B_j . C_t), and the skip D x_t
    BC = B @ C  # (b, c, g, j, t)
    mixing = (BC.unsqueeze(3) * dt.unsqueeze(-1)).mul_(decay)
    mixing.diagonal(dim1=-2, dim2=-1).add_(D.to(dtype).view(groups, -1, 1))
    Y = X @ mixing  # (b, c, g, r, p, q)

    # 3. What each chunk adds to the state by its end: sum_j decay(j -> end) dt_j x_j B_j^T
    to_end = (s[..., -1:] - s).exp() * dt  # (b, c, g, r, q)
    through = s[..., -1].exp()  # (b, c, g, r): decay of a state that crosses the whole chunk
    from_start = s.exp()  # (b, c, g, r, q): decay of the incoming state up to t
    if runs is not None:
        first_run, last_run = runs[:, :1, 0], runs[:, :, -1]
        entering = torch.cat([first_run, last_run[:, :-1]], dim=1)  # run of the incoming state
        to_end = to_end * (runs == last_run[..., None])[:, :, None, None]
        through = through * (entering == last_run)[:, :, None, None]
        from_start = from_start * (runs == entering[..., None])[:, :, None, None]
    added = (X * to_end.unsqueeze(-2)).flatten(3, 4) @ B  # (b, c, g, r p, n)

    # 4. Carry the state from chunk to chunk.
    added = added.unflatten(3, (-1, head_dim))  # (b, c, g, r, p, n)
    if initial_state is None:
        state = torch.zeros_like(added[:, 0])
    else:
        state = initial_state.to(dtype).unflatten(1, (groups, -1))
    after = _carry(state, added, through[..., None, None])

    # 5. From the incoming state to the outputs: y_t += decay(start -> t) S_in C_t.
    carried = (after[:, :-1].flatten(3, 4) @ C[:, 1:]).view_as(Y[:, 1:])
    Y[:, 1:].addcmul_(carried, from_start[:, 1:].unsqueeze(-2))
    if initial_state is not None:
        carried = (state.flatten(2, 3) @ C[:, 0]).view_as(Y[:, 0])
        Y[:, 0].addcmul_(carried, from_start[:, 0].unsqueeze(-2))
    y = Y.reshape(batch, c, heads, head_dim, q).permute(0, 1, 4, 2, 3)
    y = y.reshape(batch, c * q, heads, head_dim)[:, :seq]
    return y.to(x.dtype), after[:, -1].flatten(1, 2).clone()  # not a view of all chunks


def _carry(
    state: Float[Tensor, "batch groups heads head_dim state"],
    added: Float[Tensor, "batch chunk groups heads head_dim state"],
    keep: Float[Tensor, "batch chunk groups heads 1 1"],
) -> Float[Tensor, "batch chunk groups heads head_dim state"]:
    """Return the state after every chunk; without gradients it takes the place of `added`."""
    if torch.is_grad_enabled():
        after = []
        for add, k in zip(added.unbind(1), keep.unbind(1), strict=True):
            state = torch.addcmul(add, state, k)
            after.append(state)
        return torch.stack(after, dim=1)
    for place, k in zip(added.unbind(1), keep.unbind(1), strict=True):
        state = place.addcmul_(state, k)
    return added


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
    groups = B.shape[1]
    dtype = state.dtype
    dt = dt.to(dtype)
    scaled = (x.to(dtype) * dt[..., None]).view(x.shape[0], groups, -1, 1)  # (b, g, r p, 1)
    state.mul_((dt * A.to(dtype)).exp_()[..., None, None])
    grouped = state.view(*scaled.shape[:3], -1)  # (b, g, r p, n)
    grouped.addcmul_(scaled, B.to(dtype).unsqueeze(2))
    # C S^T rather than S C: the same product, but several times faster on a CPU
    y = (C.to(dtype).unsqueeze(2) @ grouped.transpose(2, 3)).view(x.shape)
    return torch.addcmul(y, x.to(dtype), D.to(dtype)[:, None]).to(x.dtype)


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
