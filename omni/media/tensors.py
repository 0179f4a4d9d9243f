"""Where samples and pixels become tensors: at the door of the gateway, and only there.

Within it they are NumPy arrays, so that a process which only decodes (`isolated_process`) does
without PyTorch, whose import takes seconds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the memory of an array."""
    import torch

    return torch.from_numpy(array)


def is_tensor(value: Any) -> TypeIs[Tensor]:
    """Whether this is a tensor; who has one has imported PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(array: np.ndarray | Tensor) -> np.ndarray:
    """Copy to the CPU where needed; bfloat16, which NumPy lacks, becomes float32."""
    if not is_tensor(array):
        return np.asarray(array)
    array = array.detach().cpu()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
