"""Experts with int8 weights for many rows, in one call; `sorted_by_expert` is the reference.

PyTorch's library multiplies such weights as fast, but only numbers of rows that it has met before:
each new one takes it a millisecond or two, and in a prompt nearly every expert gets another. What
comes before and after a product (rounding, activation, weighting) costs it a third more.
"""

import ctypes
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.backbone.native.library import Library, UnavailableError
from omni.backbone.native.table import ACTIVATIONS, INT8, ExpertRows, Matrix
from omni.backbone.native.watch import UnknownError

Activation = Callable[[Tensor], Tensor]
TOLERANCE = 0.1
"""Largest difference to the reference, over its norm: sums are the same integers, but the reference
multiplies up to four rows of an expert in bfloat16. A wrong result is an error near 1."""
_agrees: bool | None = None
"""Whether the first result was right; None before it."""


def run_experts(
    describe: Callable[[], tuple[Matrix, Matrix]],
    activation: Activation,
    x: Float[Tensor, "tokens width"],
    weights: Float[Tensor, "tokens chosen"],
    chosen: Int[Tensor, "tokens chosen"],
    few: int,
    reference: Callable[[], Tensor],
) -> Float[Tensor, "tokens width"] | None:
    """Return the weighted sum of the chosen experts for each token.

    Args:
        describe: Gives the tables of the first and of the second layers.
        activation: Between them.
        x: Inputs.
        weights: What each chosen expert counts.
        chosen: Experts of each token.
        few: Rows of an expert, at most, whose activations are rounded to 16 bits instead of 8.
        reference: Does the same by PyTorch; the first result of a process is compared with it.

    Returns:
        The sum in float32; None if PyTorch is to do it.
    """
    global _agrees
    if _agrees is False or activation not in ACTIVATIONS:
        return None
    try:
        library = Library.get(wait_s=0)
        up, down = describe()
    except (UnavailableError, UnknownError):
        return None
    if {up.format, down.format} != {INT8}:
        return None
    kind = ACTIVATIONS.index(activation)
    total = call_experts(library, up, down, kind, x, weights, chosen, few)
    if total is None:
        _agrees = False
    elif not _agrees:
        expected = reference()
        if not expected.isfinite().all():
            return expected  # which proves nothing
        error = ((total - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        _agrees = error <= TOLERANCE  # NaN is not
        if not _agrees:
            warnings.warn(
                f"Native products of experts are not used: their results differ by {error:.1e}, "
                f"allowed are {TOLERANCE}.",
                stacklevel=2,
            )
            return expected
    return total


def call_experts(
    library: Library,
    up: Matrix,
    down: Matrix,
    activation: int,
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    few: int = 0,
) -> Tensor | None:
    """Call the library with tables of both layers; None if it cannot run them here.

    Args:
        library: The library.
        up: All first layers.
        down: All second layers.
        activation: Between them, as an index of `ACTIVATIONS`.
        x: Inputs.
        weights: What each chosen expert counts.
        chosen: Experts of each token.
        few: As in `run_experts`; float weights do not need it.
    """
    experts, order = chosen.flatten().sort(stable=True)
    ends = torch.bincount(experts).cumsum(0)  # up to the last one that was chosen
    tokens = order // chosen.shape[1]
    shares = weights.float().flatten()[order]
    rows = x.float().contiguous()
    total = rows.new_empty(len(rows), down.num_outputs)
    routed = ExpertRows(
        ends=ends.data_ptr(),
        tokens=tokens.data_ptr(),
        shares=shares.data_ptr(),
        num_experts=len(ends),
        num_tokens=len(rows),
        activation=activation,
        few=few,
    )
    done = library.experts(
        *(ctypes.addressof(up), ctypes.addressof(down), ctypes.addressof(routed)),
        *(rows.data_ptr(), total.data_ptr()),
        torch.get_num_threads(),
    )
    return total if done else None
