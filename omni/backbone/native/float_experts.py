"""Large float32 experts of many rows, in one call; `Experts.sorted_by_expert` is the reference.

The libraries that multiply lay each weight out anew in every call, which a few dozen rows of an
expert do not pay for: at released widths they reach 70 % of their rate for one large product.
"""

import warnings
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from omni.backbone.native.experts import call_experts
from omni.backbone.native.library import Library, UnavailableError
from omni.backbone.native.table import ACTIVATIONS, FLOAT_ROWS, read_experts
from omni.backbone.native.watch import UnknownError, Watch

CHECKED = 8
"""Tokens of the first result of a process that are compared with the reference."""
TOLERANCE = 1e-4
"""Largest difference to the reference, over its norm: sums are in another order."""
_agrees: bool | None = None
"""Whether the first result was right; None before it."""


def run_float_experts(
    experts: Any,
    x: Float[Tensor, "tokens width"],
    weights: Float[Tensor, "tokens chosen"],
    chosen: Int[Tensor, "tokens chosen"],
) -> Float[Tensor, "tokens width"] | None:
    """Return the weighted sum of the chosen experts for each token.

    Waits for the library if it is still being built, so that results depend on the machine only.

    Args:
        experts: An `Experts`, in float32.
        x: Inputs, in float32.
        weights: What each chosen expert counts.
        chosen: Experts of each token.

    Returns:
        The sum; None if PyTorch is to do it.
    """
    global _agrees
    if _agrees is False or experts.activation not in ACTIVATIONS:
        return None
    try:
        library = Library.get()
        up, down = read_experts(experts, Watch())
    except (UnavailableError, UnknownError):
        return None
    if {up.format, down.format} != {FLOAT_ROWS}:
        return None
    kind = ACTIVATIONS.index(experts.activation)
    total = call_experts(library, up, down, kind, x, weights, chosen)
    if total is not None and _agrees is None:
        few = slice(CHECKED)
        expected = experts.sorted_by_expert(x[few], weights[few], chosen[few])
        error = ((total[few] - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        if expected.isfinite().all():
            _agrees = error <= TOLERANCE
        if _agrees is False:
            warnings.warn(
                f"Native products of experts are not used: their results differ by {error:.1e}, "
                f"allowed are {TOLERANCE}.",
                stacklevel=2,
            )
            return None
    return total
