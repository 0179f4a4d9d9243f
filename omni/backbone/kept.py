"""Small tensors that are made once: in a decoding step, making one takes as long as using it."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def keep_tensors(make: Callable[P, tuple[Tensor, ...]]) -> Callable[P, tuple[Tensor, ...]]:
    """Let a function make tensors once for given arguments, of which there are a few at most.

    Tensors that stand for others while a model is traced or exported are not kept: later calls,
    of any model, could not use them.

    Args:
        make: Its arguments are hashable.
    """
    kept: dict[tuple[object, ...], tuple[Tensor, ...]] = {}

    @wraps(make)
    def give(*args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, ...]:
        key = (*args, *sorted(kwargs.items()))
        found = kept.get(key)
        if found is None:
            with torch.inference_mode(False):
                found = make(*args, **kwargs)
            if all(type(tensor) is Tensor for tensor in found):
                kept[key] = found
        return found

    return give
