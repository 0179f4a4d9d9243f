"""What tests of the native library ask of the machine, and a process that has not looked for it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from omni.backbone.native import library

_COMPILER = os.environ.get("CXX") or "g++"
HAS_COMPILER = shutil.which(_COMPILER) is not None
needs_compiler = pytest.mark.skipif(
    not HAS_COMPILER,
    reason=f"NO C++ COMPILER {_COMPILER!r}: THE NATIVE LIBRARY IS NOT TESTED. Install g++.",
)


def _multiplies_bytes() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "avx512_vnni" in flags.read_text()


needs_products = pytest.mark.skipif(
    not _multiplies_bytes(), reason="no AVX-512 VNNI: experts are multiplied by PyTorch"
)


def forget_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next step look for the library anew, without a compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv(library.SWITCH, raising=False)
    monkeypatch.setattr(library, "_thread", None)
    monkeypatch.setattr(library, "_found", "")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors have another number format inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
