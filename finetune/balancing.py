"""Equal load of the experts without a loss term."""

from typing import Any

import torch
from torch import Tensor

from omni.backbone.moe import Router
from omni.model import OmniModel


class Balancer:
    """Counts what the routers choose during a step, and nudges their correction biases.

    b[e] += rate * sign(mean load - load[e]), as in auxiliary-loss-free balancing
    (https://arxiv.org/abs/2408.15664). The gradients know nothing of it.

    Args:
        model: With or without experts.
        rate: The step; 0 changes and counts nothing.
    """

    def __init__(self, model: OmniModel, rate: float) -> None:
        self.rate = rate
        routers = {n: m for n, m in model.named_modules() if isinstance(m, Router)} if rate else {}
        self.biases: dict[str, Tensor] = {
            f"{name}.e_score_correction_bias": router.e_score_correction_bias
            for name, router in routers.items()
        }
        self._routers = list(routers.values())
        self._loads: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "Balancer":
        self._loads = [torch.zeros_like(r.e_score_correction_bias) for r in self._routers]
        for router, load in zip(self._routers, self._loads, strict=True):

            def count(_: Any, __: Any, output: tuple[Tensor, Tensor], load: Tensor = load) -> None:
                load += torch.bincount(output[1].flatten(), minlength=len(load)).to(load)

            self._handles.append(router.register_forward_hook(count))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for router, load in zip(self._routers, self._loads, strict=True):
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(load)
            router.e_score_correction_bias += self.rate * torch.sign(load.mean() - load)
