"""The Mamba-2 layer: projection, short causal convolution, recurrence, gated norm, projection."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import NemotronHConfig

from omni.backbone import kernels
from omni.backbone.cache import MambaState
from omni.backbone.layers import GatedRMSNorm, ResidualLinear, find_activation, upcast
from omni.backbone.products import Linear
from omni.backbone.ssd import ssd_scan, ssd_step


class CausalConv(nn.Module):
    """Parameters of the depthwise convolution; see `causal_conv`."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(
        self,
        x: Float[Tensor, "batch seq channels"],
        window: Float[Tensor, "batch window channels"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq channels"]:
        """Convolve; arguments and result are those of `causal_conv`."""
        fused = x.is_cuda and kernels.self_test(str(x.device)).conv.usable
        convolve = kernels.fused_conv if fused else causal_conv
        return convolve(x, self.weight, self.bias, window, segment_ids)


def causal_conv(
    x: Float[Tensor, "batch seq channels"],
    weight: Float[Tensor, "channels 1 kernel"],
    bias: Float[Tensor, " channels"] | None,
    window: Float[Tensor, "batch window channels"] | None = None,
    segment_ids: Int[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq channels"]:
    """Convolve each channel over the last `kernel` positions, without crossing segments.

    Args:
        x: Inputs.
        weight: Filter of each channel, oldest tap first.
        bias: Added to each channel.
        window: The `kernel - 1` inputs before `x`; zeros if None.
        segment_ids: Packed sequences, a different id for every segment of a row, as
            `number_runs` makes them. Not together with `window`.

    Returns:
        Outputs, in at least float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    taps = weight.squeeze(1).t().to(dtype).contiguous()
    bias = bias.to(dtype) if bias is not None else None
    if window is None or not torch.is_grad_enabled():
        y: Tensor = _ShiftedSum.apply(x, taps, bias, window, segment_ids)
        return y
    seen = torch.cat([window, x], dim=1)
    y = _ShiftedSum.apply(seen, taps, bias, None, segment_ids)
    return y[:, -x.shape[1] :]


class _ShiftedSum(torch.autograd.Function):
    """y_t = bias + sum_lag taps[-1 - lag] * x_{t - lag}, with gradients that sum in place.

    Autograd of the same loop keeps and adds a full tensor per tap; this measured 2.4 times as fast.
    A window before `x` gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch seq channels"],
        taps: Float[Tensor, "kernel channels"],
        bias: Float[Tensor, " channels"] | None,
        window: Float[Tensor, "batch window channels"] | None,
        segment_ids: Int[Tensor, "batch seq"] | None,
    ) -> Float[Tensor, "batch seq channels"]:
        ctx.save_for_backward(x, taps, segment_ids)
        y = x * taps[-1] if bias is None else torch.addcmul(bias, x, taps[-1])
        seq = x.shape[1]
        for lag in range(1, len(taps)):
            if lag < seq:
                earlier = _within_segment(x[:, :-lag], segment_ids, lag)
                y[:, lag:].addcmul_(earlier, taps[-1 - lag])
            if window is not None:
                before = window[:, window.shape[1] - lag :][:, :seq]
                y[:, :lag].addcmul_(before, taps[-1 - lag])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, segment_ids = ctx.saved_tensors
        grad_x = grad * taps[-1]
        grad_taps = torch.zeros_like(taps)
        grad_taps[-1] = (grad * x).sum((0, 1))
        for lag in range(1, min(len(taps), x.shape[1])):
            later = _within_segment(grad[:, lag:], segment_ids, lag)
            grad_x[:, :-lag].addcmul_(later, taps[-1 - lag])
            grad_taps[-1 - lag] = (later * x[:, :-lag]).sum((0, 1))
        grad_bias = grad.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return grad_x.to(x.dtype), grad_taps, grad_bias, None, None


def _within_segment(x: Tensor, segment_ids: Tensor | None, lag: int) -> Tensor:
    """Zero what belongs to a pair of positions, `lag` apart, of different segments."""
    if segment_ids is None:
        return x
    return x * (segment_ids[:, lag:] == segment_ids[:, :-lag])[..., None]


class MambaMixer(nn.Module):
    """Mamba-2 (arXiv 2405.21060).

    1. `in_proj` gives gate, convolution input (x, B, C) and step size for each position.
    2. A short causal convolution mixes neighbouring positions.
    3. The recurrence of `ssd.py` mixes over all distances.
    4. Gate, normalise, project back.
    """

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.head_dim = config.mamba_head_dim
        self.num_groups = config.n_groups
        self.inner_size = config.mamba_num_heads * config.mamba_head_dim
        self.group_size = config.n_groups * config.ssm_state_size
        self.num_heads = config.mamba_num_heads
        conv_size = self.inner_size + 2 * self.group_size
        # transformers clamps from `time_step_min` and reads no limit; the config's own limit is
        # (0, inf) wherever published, so honouring both is the same model.
        lower, upper = config.time_step_limit
        self.time_step_limit = (max(lower, config.time_step_min), upper)

        self.in_proj = Linear(
            config.hidden_size, self.inner_size + conv_size + self.num_heads, bias=config.use_bias
        )
        self.conv1d = CausalConv(conv_size, config.conv_kernel, bias=config.use_conv_bias)
        self.activation = find_activation(config.mamba_hidden_act)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(
            self.inner_size, num_groups=config.n_groups, eps=config.layer_norm_epsilon
        )
        self.out_proj = ResidualLinear(self.inner_size, config.hidden_size, bias=config.use_bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        mask: Bool[Tensor, "batch seq"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
        state: MambaState | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Mix the positions of each row.

        Args:
            hidden_states: Input.
            mask: True where a position is real. In each row the real positions come first, so that
                padding cannot reach them; the mask only keeps it out of `state`.
            segment_ids: Packed sequences, not together with `state`.
            state: Continues from here and is brought up to date.
        """
        is_step = hidden_states.shape[1] == 1 and mask is None
        if is_step and state is not None and state.ssm_state is not None:
            return self.step(hidden_states, *state.writable())
        conv_size = self.inner_size + 2 * self.group_size
        gate, conv_input, dt = self.in_proj(hidden_states).split(
            [self.inner_size, conv_size, self.num_heads], dim=-1
        )
        dt = F.softplus(upcast(dt) + upcast(self.dt_bias)).clamp(*self.time_step_limit)
        if mask is not None and state is not None:
            dt = dt * mask[..., None]

        window = state.conv_state if state is not None else None
        mixed = self.activation(self.conv1d(conv_input, window, segment_ids))
        x, B, C = mixed.split([self.inner_size, self.group_size, self.group_size], dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        B = B.unflatten(-1, (self.num_groups, -1))
        C = C.unflatten(-1, (self.num_groups, -1))
        A = -upcast(self.A_log).exp()

        fused = x.is_cuda and kernels.self_test(str(x.device)).scan.usable
        scan = kernels.fused_scan if fused else ssd_scan
        if state is None:
            y, _ = scan(x, dt, A, B, C, self.D, segment_ids=segment_ids)
        else:
            next_window = self._next_window(conv_input, window, mask)
            if x.shape[1] == 1 and state.ssm_state is not None:
                _, own = state.writable()
                y = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], self.D, own).unsqueeze(1)
            else:
                y, final = scan(x, dt, A, B, C, self.D, initial_state=state.ssm_state)
                state.ssm_state, state.shared = final, False
            state.conv_state = next_window
        return self.out_proj(self.norm(y.flatten(2), gate))

    def step(
        self,
        hidden_states: Float[Tensor, "batch 1 hidden"],
        conv_state: Float[Tensor, "batch window channels"],
        ssm_state: Float[Tensor, "batch heads head_dim state"],
    ) -> Float[Tensor, "batch 1 hidden"]:
        """`forward` of one unpadded position after others, in the fewest operations.

        Both states, as in `MambaState`, are brought up to date in place.
        """
        sizes = [self.inner_size, self.inner_size + 2 * self.group_size, self.num_heads]
        gate, conv_input, dt = self.in_proj(hidden_states).split(sizes, dim=-1)
        dt = F.softplus(upcast(dt[:, 0]) + upcast(self.dt_bias)).clamp_(*self.time_step_limit)

        seen = torch.cat([conv_state, conv_input], dim=1)  # (batch, kernel, channels)
        conv_state.copy_(seen[:, 1:])
        mixed = (seen * upcast(self.conv1d.weight).squeeze(1).t()).sum(1)
        if self.conv1d.bias is not None:
            mixed.add_(self.conv1d.bias)
        x, B, C = self.activation(mixed).split(
            [self.inner_size, self.group_size, self.group_size], dim=-1
        )
        y = ssd_step(
            x.unflatten(-1, (self.num_heads, self.head_dim)),
            dt,
            -upcast(self.A_log).exp(),
            B.unflatten(-1, (self.num_groups, -1)),
            C.unflatten(-1, (self.num_groups, -1)),
            self.D,
            ssm_state,
        )
        return self.out_proj(self.norm(y.flatten(1).unsqueeze(1), gate))

    def _next_window(
        self,
        conv_input: Float[Tensor, "batch seq channels"],
        window: Float[Tensor, "batch window channels"] | None,
        mask: Bool[Tensor, "batch seq"] | None,
    ) -> Float[Tensor, "batch window channels"]:
        """Return the last `conv_kernel - 1` real inputs of each row."""
        size = self.conv1d.weight.shape[-1] - 1
        if window is None:
            window = conv_input.new_zeros(conv_input.shape[0], size, conv_input.shape[2])
        if mask is None and conv_input.shape[1] >= size:
            return conv_input[:, conv_input.shape[1] - size :].clone()
        seen = torch.cat([window, conv_input], dim=1)
        if mask is None:
            last = seen[:, seen.shape[1] - size :]
            return last.clone(memory_format=torch.contiguous_format)  # strides of its own
        ends = mask.sum(1)[:, None] + torch.arange(size, device=mask.device)
        return seen.gather(1, ends[..., None].expand(-1, -1, seen.shape[2]))
