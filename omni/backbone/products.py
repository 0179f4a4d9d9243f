"""Products of activations with weights, by the library that is fastest on the processor.

PyTorch multiplies float32 matrices with Intel's MKL. On AMD processors its products of a few rows
run on one core and the others at two thirds of the rate of oneDNN, which PyTorch contains as well
(measured by `benchmarks/backbone.py`); there float32 goes to oneDNN. All other types, devices and
processors take PyTorch's own path, which is also the reference in the tests.

For one row and a small weight even oneDNN reaches a third of the memory's rate: there the product
is written out, which reads the weight once and keeps the rest in the cache (docs/adr/0012).

Which library multiplies depends on the machine only, never on a timing, so results repeat.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MAX_WRITTEN_OUT = 3 * 2**17
"""Numbers of the largest weight whose product with one row is written out: 1.5 MiB."""


def linear(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "out width"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*batch out"]:
    """Return `x @ weight.T + bias`, as `torch.nn.functional.linear` does."""
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias is not None):
        y: Tensor = _Product.apply(x, weight)
        return y if bias is None else y + bias
    if x.numel() == weight.shape[1] and weight.numel() <= MAX_WRITTEN_OUT:
        y = (weight * x.view(-1)).sum(1)
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)
    return _onednn(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Multiply the last axis."""
        return linear(x, self.weight, self.bias)


def use_fast_products(module: nn.Module) -> None:
    """Let every plain `torch.nn.Linear` in a module multiply by `linear`; weights and names stay.

    Args:
        module: Such as a tower of transformers.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def grouped_linear(
    x: Float[Tensor, "rows width"], weights: Float[Tensor, "groups out width"], sizes: list[int]
) -> Float[Tensor, "rows out"]:
    """Multiply the first `sizes[0]` rows by the first matrix, the next by the second, and so on.

    One step of autograd for all groups, which writes each gradient once to its place.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # which is off when gradients are computed
        x, weights = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (x, weights))
    y: Tensor = _GroupedProduct.apply(x, weights, sizes)
    return y


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and prefers_onednn()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def prefers_onednn() -> bool:
    """Return whether float32 products go to oneDNN: on AMD processors, where PyTorch has it."""
    is_amd = "AuthenticAMD" in platform.processor() or "AuthenticAMD" in _cpuinfo()
    return is_amd and torch.backends.mkldnn.is_available() and _has_operator()


def _has_operator() -> bool:
    """Whether this PyTorch has the operator under its private name, and it multiplies."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    try:
        with torch.no_grad():
            return torch.equal(_onednn(x, weight, None), F.linear(x, weight))
    except (RuntimeError, TypeError):
        return False


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text()[:1000] if path.is_file() else ""


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` without gradients; the operator is the one that torch.compile uses."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _Product(torch.autograd.Function):
    """`x @ weight.T`, forward and backward by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = _onednn(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        # The first factor is copied when it is transposed: let that be the smaller one.
        grad, x = (tensor.reshape(-1, tensor.shape[-1]).t() for tensor in (grad, x))
        if len(grad) <= len(x):
            return grad_x, _onednn(grad, x, None)
        return grad_x, _onednn(x, grad, None).t()


def _grouped(x: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """`grouped_linear` without gradients: each product is written to where it belongs."""
    y = x.new_empty(len(x), weights.shape[1])
    parts = zip(x.split(sizes), weights.unbind(), y.split(sizes), strict=True)
    for part, weight, place in parts:
        if _takes_onednn(part, weight):
            place.copy_(_onednn(part, weight, None))
        else:
            torch.mm(part, weight.t(), out=place)
    return y


class _GroupedProduct(torch.autograd.Function):
    """`grouped_linear`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.sizes = sizes
        return _grouped(x, weights, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        grads = grad.split(ctx.sizes)
        grad_x = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_x = _grouped(grad, weights.mT, ctx.sizes)
        if ctx.needs_input_grad[1]:
            grad_weights = torch.empty_like(weights)
            places = zip(grads, x.split(ctx.sizes), grad_weights.unbind(), strict=True)
            for part, rows, place in places:
                torch.mm(part.t(), rows, out=place)  # zero where there are no rows
        return grad_x, grad_weights, None
