"""What stands before and after a product of int8 rows, in one pass each.

`omni.quantization.formats` says what is computed, and does it by PyTorch where there is no library.
"""

import warnings

import torch
from jaxtyping import Float, Float32, Int8, Int32
from torch import Tensor

from omni.backbone.native.library import Library, UnavailableError

_agrees: bool | None = None
"""Whether a first trial was right; None before it."""


def find_library() -> Library | None:
    """Return the library, once it is built, if it rounds and scales as PyTorch does."""
    global _agrees
    if _agrees is False:
        return None
    try:
        library = Library.get(wait_s=0)
    except UnavailableError:
        return None
    if _agrees is None:
        _agrees = _is_right(library)
        if not _agrees:
            warnings.warn("Native rounding is not used: its results are wrong.", stacklevel=2)
    return library if _agrees else None


def round_rows(
    library: Library, x: Float[Tensor, "m k"], *, two_steps: bool = False
) -> list[tuple[Int8[Tensor, "m k"], Float[Tensor, "m 1"]]]:
    """Round rows to int8 with one unit for each.

    Args:
        library: From `find_library`.
        x: Rows.
        two_steps: Round what that leaves as well.

    Returns:
        Integers and units of each step.
    """
    x = x.float().contiguous()
    (q, units), *rests = [
        (torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), 1))
        for _ in range(1 + two_steps)
    ]
    rest, rest_units = (t.data_ptr() for t in rests[0]) if rests else (None, None)
    library.round(
        x.data_ptr(),
        *(x.shape[0], x.shape[1]),
        *(q.data_ptr(), units.data_ptr()),
        rest,
        rest_units,
        torch.get_num_threads(),
    )
    return [(q, units), *rests]


def scale_sums(
    library: Library,
    sums: Int32[Tensor, "m n"],
    scale: Float32[Tensor, " n"],
    units: Float32[Tensor, "m 1"],
    out: Float32[Tensor, "m n"],
    *,
    adds: bool = False,
) -> None:
    """Write the sums times the scale of each output and the unit of each row, or add that.

    Args:
        library: From `find_library`.
        sums: Of a product of integers.
        scale: Of each output.
        units: Of each row.
        out: Where to.
        adds: Add to what is there.
    """
    assert sums.dtype == torch.int32
    assert all(tensor.dtype == torch.float32 for tensor in (scale, units, out))
    assert all(tensor.is_contiguous() for tensor in (sums, scale, units, out))
    library.scale(
        *(sums.data_ptr(), scale.data_ptr(), units.data_ptr()),
        *(sums.shape[0], sums.shape[1]),
        adds,
        out.data_ptr(),
        torch.get_num_threads(),
    )


def _is_right(library: Library) -> bool:
    """Whether some rows are rounded and scaled as they should be."""
    with torch.device("cpu"):  # whatever the process has as default
        x = torch.linspace(-3, 2, 5 * 77, dtype=torch.float32).sin().mul(1.7).view(5, 77)
        sums = torch.arange(-100, 65, dtype=torch.int32).view(5, 33)
        scale = torch.linspace(0.5, 2, 33, dtype=torch.float32)
        out = torch.ones(5, 33, dtype=torch.float32)
    (q, units), (rest, rest_units) = round_rows(library, x, two_steps=True)
    scale_sums(library, sums, scale, units, out, adds=True)
    largest = x.abs().amax(-1, keepdim=True)
    return (
        torch.allclose(units, largest / 127)
        and bool(((q * units - x).abs() <= 0.51 * units).all())
        and bool(((q * units + rest * rest_units - x).abs() <= 0.51 * rest_units).all())
        and torch.allclose(out, 1 + sums * scale * units, rtol=1e-5, atol=1e-6)
    )
