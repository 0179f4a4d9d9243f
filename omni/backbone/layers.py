"""Small layers shared by the mixers: normalisation, the plain MLP, activations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omni.errors import ConfigError


def upcast(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it is that: sums need more than half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def relu_squared(x: Tensor) -> Tensor:
    """Square of the rectified input, the activation of the Nemotron MLPs and experts."""
    return F.relu(x).square()


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


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual stream; it is initialised smaller."""


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in at least float32."""

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Normalise the last axis; the result has the dtype of the weights."""
        normed = F.rms_norm(upcast(x), x.shape[-1:], upcast(self.weight), self.eps)
        return normed.to(self.weight.dtype)


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
        gated = upcast(x) * F.silu(upcast(gate))
        grouped = gated.unflatten(-1, (self.num_groups, -1))
        normed = F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2)
        return normed.to(self.weight.dtype) * self.weight


class MLP(nn.Module):
    """Two linear layers with an activation between, no gate."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, activation: str
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = ResidualLinear(intermediate_size, hidden_size, bias=bias)
        self.activation = find_activation(activation)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Map the last axis up, through the activation, and down again."""
        return self.down_proj(self.activation(self.up_proj(x)))
