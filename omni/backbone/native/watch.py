"""Whether a model is still what a table was made from, told in microseconds.

A table holds pointers, so it must know of every module that is replaced, tensor that is moved,
setting that is changed and hook that is added. Tensors that are only written to are the same.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_OF_ALL_MODULES = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


class UnknownError(Exception):
    """The library cannot take this step; the message says why."""


class Watch:
    """What a table was made from, and whether it is still so."""

    def __init__(self) -> None:
        self._children: list[tuple[dict[str, Any], str, nn.Module | None]] = []
        self._counts: list[tuple[dict[str, Any], int]] = []
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int]] = []
        self._absent: list[tuple[dict[str, Any], str]] = []
        self._settings: list[tuple[Callable[[Any], Any], nn.Module, Any]] = []
        self._hooks: list[Any] = [*_OF_ALL_MODULES]
        self._own: list[dict[str, Any]] = []

    def module(self, module: nn.Module, *types: type) -> None:
        """Take part of a module of one of the types, which nobody has hooked into.

        Raises:
            UnknownError: It is another module, or not a plain one.
        """
        if type(module) not in types:
            raise UnknownError(f"{type(module).__name__} is not known to the library")
        self.children(module, *module._modules)
        self._counts.append((module._modules, len(module._modules)))
        self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._own.append(module.__dict__)

    def children(self, module: nn.Module, *names: str) -> list[Any]:
        """Modules that belong to another."""
        own = module._modules
        self._children += [(own, name, own[name]) for name in names]
        return [own[name] for name in names]

    def settings(self, module: nn.Module, *names: str) -> Any:
        """Values of settings of a module, one or a tuple of them."""
        read = attrgetter(*names)
        value = read(module)
        self._settings.append((read, module, value))
        return value

    def tensor(self, module: nn.Module, name: str) -> Tensor:
        """A tensor of a module, on the CPU."""
        owner = module._parameters if name in module._parameters else module._buffers
        tensor = owner[name]
        assert tensor is not None
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu":
            raise UnknownError(f"{name} is a {type(tensor).__name__} on {tensor.device}")
        self._tensors.append((owner, name, tensor, tensor.data_ptr()))
        return tensor

    def floats(self, module: nn.Module, name: str) -> int:
        """Address of a tensor of adjacent float32 numbers."""
        tensor = self.tensor(module, name)
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise UnknownError(f"{name} is {tensor.dtype} with strides {tensor.stride()}")
        return tensor.data_ptr()

    def floats_or_none(self, module: nn.Module, name: str) -> int | None:
        """`floats`, where a layer may have none."""
        if getattr(module, name) is not None:
            return self.floats(module, name)
        self._absent.append((module._parameters, name))
        return None

    def refuse_hooks(self) -> None:
        """Raise `UnknownError` if anybody hooked into one of the modules."""
        if not self.is_unchanged():
            raise UnknownError("somebody hooked into a module")

    def is_unchanged(self) -> bool:
        """Whether modules, tensors and settings are those of the table, and nobody hooked in."""
        return (
            not any(self._hooks)
            and all(owner.get(name) is child for owner, name, child in self._children)
            and all(len(owner) == count for owner, count in self._counts)
            and all(owner.get(name) is None for owner, name in self._absent)
            and all(
                owner.get(name) is tensor and tensor.data_ptr() == address
                for owner, name, tensor, address in self._tensors
            )
            and all(read(module) == value for read, module, value in self._settings)
            and not any("forward" in own for own in self._own)
        )
