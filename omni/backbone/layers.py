"""Small layers shared by the mixers: normalisation, the plain MLP, activations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omni.backbone.kept import keep_tensors
from omni.backbone.products import Linear
from omni.errors import ConfigError


def upcast(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it is that: sums need more than half precision."""
    if x.dtype == torch.float32:
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def relu_squared(x: Tensor) -> Tensor:
    """Square of the rectified input, the activation of the Nemotron MLPs and experts."""
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _ReluSquared.apply(x)
        return y
    rectified = F.relu(x)
    return rectified.mul_(rectified)


class _ReluSquared(torch.autograd.Function):
    """relu(x)^2, whose gradient 2 relu(x) needs one tensor and two passes instead of five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        ctx.save_for_backward(rectified)
        return rectified * rectified

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        return (grad * rectified).mul_(2)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu_squared,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
}


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that a config names.

    Raises:
        ConfigError: No activation has this name.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(f"Unknown activation {name!r}; known are {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


class ResidualLinear(Linear):
    """A linear layer whose output is added to the residual stream; it is initialised smaller."""


def rms_norm(x: Float[Tensor, "*batch channels"], eps: float) -> Float[Tensor, "*batch channels"]:
    """Divide the last axis by its root mean square.

    By the vector norm, in half of the operations of PyTorch's own.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _RMSNorm.apply(x, eps)
        return y
    return x * _inverse_rms(x, eps)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(*batch, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    [least] = _scalar(eps, x.dtype, x.device)
    return torch.addcmul(least, norm, norm, value=1 / x.shape[-1]).rsqrt_()


@keep_tensors
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor]:
    """A tensor of one number."""
    return (torch.scalar_tensor(value, dtype=dtype, device=device),)


class _RMSNorm(torch.autograd.Function):
    """y = s x with s = 1 / rms(x), and its gradient s (g - y mean(g y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = _inverse_rms(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        mean = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, mean, value=-1).mul_(scale), None


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in at least float32."""

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Normalise the last axis; the result has the dtype of the weights."""
        if not torch.is_grad_enabled() and x.dtype == self.weight.dtype == torch.float32:
            return (x * _inverse_rms(x, self.eps)).mul_(self.weight)
        return (rms_norm(upcast(x), self.eps) * upcast(self.weight)).to(self.weight.dtype)


class GatedRMSNorm(nn.Module):
    """RMS normalisation of `x * silu(gate)` in groups of channels, the output norm of Mamba-2."""

    def __init__(self, hidden_size: int, *, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.num_groups = num_groups
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "*batch channels"], gate: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """Gate, then normalise each group; the result has the dtype of the weights."""
        if torch.is_grad_enabled():
            gated = upcast(x) * F.silu(upcast(gate))
            normed = rms_norm(gated.unflatten(-1, (self.num_groups, -1)), self.eps).flatten(-2)
        else:
            normed = F.silu(upcast(gate)).mul_(x)
            grouped = normed.unflatten(-1, (self.num_groups, -1))
            grouped.mul_(_inverse_rms(grouped, self.eps))
            if normed.dtype == self.weight.dtype:
                return normed.mul_(self.weight)
        return normed.to(self.weight.dtype) * self.weight


class MLP(nn.Module):
    """Two linear layers with an activation between, no gate."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, activation: str
    ) -> None:
        super().__init__()
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = ResidualLinear(intermediate_size, hidden_size, bias=bias)
        self.activation = find_activation(activation)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Map the last axis up, through the activation, and down again."""
        return self.down_proj(self.activation(self.up_proj(x)))
