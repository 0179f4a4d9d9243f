"""Optional fused CUDA kernels for the scan and the convolution.

Used when the packages `mamba-ssm` and `causal-conv1d` are installed, the tensors are on a CUDA
device, and a first comparison with our own path agrees. Nothing here is ever needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from omni.backbone.ssd import ssd_scan

TOLERANCE = 2e-2
"""Largest difference allowed in the self-test, relative to the largest value: the kernels multiply
in TF32 (10 bits, 1e-3 per product); a wrong reset or a wrong decay is an error near 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStatus:
    """Whether one kernel is used, and why (not)."""

    package: str
    usable: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """Result of the self-test on one device."""

    device: str
    scan: KernelStatus
    conv: KernelStatus


def fused_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `ssd_scan` with the kernel of mamba-ssm; same arguments and results.

    Raises:
        ImportError: mamba-ssm is not installed.
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y, state = mamba_chunk_scan_combined(
        *(x, dt, A, B, C),
        chunk_size=256,
        D=D,
        initial_states=initial_state,
        seq_idx=segment_ids.int() if segment_ids is not None else None,
        return_final_states=True,
    )
    return y, state


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Run `causal_conv` with the kernel of causal-conv1d; same arguments and result.

    Raises:
        ImportError: causal-conv1d is not installed.
    """
    from causal_conv1d import causal_conv1d_fn

    y: Tensor = causal_conv1d_fn(
        x.transpose(1, 2),
        weight.squeeze(1),
        bias,
        seq_idx=segment_ids.int() if segment_ids is not None else None,
        initial_states=window.transpose(1, 2) if window is not None else None,
    )
    return y.transpose(1, 2)


@cache
def self_test(device: str = "cuda") -> KernelReport:
    """Compare the fused kernels with our own path, once per process and device.

    Args:
        device: A torch device name. On a machine without CUDA the report says so.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        return KernelReport(
            device=device,
            scan=_refused("mamba-ssm", "CUDA is not available"),
            conv=_refused("causal-conv1d", "CUDA is not available"),
        )
    return KernelReport(
        device=device,
        scan=_examine("mamba-ssm", lambda: _scan_error(device)),
        conv=_examine("causal-conv1d", lambda: _conv_error(device)),
    )


def _refused(package: str, detail: str) -> KernelStatus:
    return KernelStatus(package=package, usable=False, detail=detail)


def _examine(package: str, measure: Callable[[], float]) -> KernelStatus:
    try:
        with torch.enable_grad():
            error = measure()
    except ImportError as missing:
        return _refused(package, f"not installed ({missing})")
    except _launch_failures() as failure:
        return _refused(package, f"failed: {type(failure).__name__}: {failure}")
    if not error <= TOLERANCE:  # also refuses NaN
        return _refused(package, f"differs from our path by {error:.1e}, allowed {TOLERANCE:.0e}")
    return KernelStatus(package=package, usable=True, detail=f"agrees within {error:.1e}")


def _launch_failures() -> tuple[type[BaseException], ...]:
    """What a kernel built for another torch, driver or GPU may raise."""
    failures = (RuntimeError, TypeError, ValueError, AttributeError, OSError)
    if find_spec("triton") is None:
        return failures
    return (*failures, import_module("triton.errors").TritonError)


def _scan_error(device: str) -> float:
    make = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make).to(device)

    x = random(2, 48, 4, 64).requires_grad_()
    dt, A = random(2, 48, 4).abs() * 0.1, -random(4).abs()
    B, C, D = random(2, 48, 2, 64), random(2, 48, 2, 64), random(4)
    start = random(2, 4, 64, 64)
    segments = (torch.arange(48, device=device) // 20).expand(2, 48)
    errors = []
    cases: tuple[dict[str, Any], ...] = ({"initial_state": start}, {"segment_ids": segments})
    for case in cases:
        theirs = fused_scan(x, dt, A, B, C, D, **case)
        ours = ssd_scan(x, dt, A, B, C, D, **case)
        errors += [_relative_error(a, b) for a, b in zip(theirs, ours, strict=True)]
        errors.append(_gradient_error(theirs[0], ours[0], x))
    return max(errors)


def _conv_error(device: str) -> float:
    from omni.backbone.mamba import causal_conv

    make = torch.Generator().manual_seed(0)
    x = torch.randn(2, 48, 64, generator=make).to(device).requires_grad_()
    weight, bias = torch.randn(64, 1, 4, generator=make).to(device), torch.ones(64, device=device)
    window = torch.randn(2, 3, 64, generator=make).to(device)
    segments = (torch.arange(48, device=device) // 20).expand(2, 48)
    errors = []
    for options in ({"window": window}, {"segment_ids": segments}):
        theirs = fused_conv(x, weight, bias, **options)
        ours = causal_conv(x, weight, bias, **options)
        errors += [_relative_error(theirs, ours), _gradient_error(theirs, ours, x)]
    return max(errors)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _gradient_error(found: Tensor, expected: Tensor, x: Tensor) -> float:
    gradients = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected))
    return _relative_error(*gradients)
