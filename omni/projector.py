"""From tower width to decoder width (spec: RMSNorm, linear, squared ReLU, linear)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square norm that multiplies by its weight in float32, as the released model does.

    Args:
        size: Width of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the normalised states in the input's dtype."""
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(hidden_states.dtype)


class Projector(nn.Module):
    """Two linear layers with squared ReLU between; parameter names are the reference's.

    Args:
        input_size: Width of a tower token (after pixel shuffle: four times the tower width).
        hidden_size: Width between the two layers.
        output_size: Decoder width.
        bias: Whether the linear layers have biases.
    """

    def __init__(
        self, *, input_size: int, hidden_size: int, output_size: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(input_size)
        self.linear_1 = nn.Linear(input_size, hidden_size, bias=bias)
        self.linear_2 = nn.Linear(hidden_size, output_size, bias=bias)

    def forward(self, features: Float[Tensor, "tokens input"]) -> Float[Tensor, "tokens output"]:
        """Project tower tokens to decoder embeddings."""
        hidden = F.relu(self.linear_1(self.layer_norm(features)))
        return self.linear_2(hidden * hidden)  # (tokens, output)
