"""The optimisers of all three trainings: Muon inside the layers, AdamW for everything else.

Muon makes the update of a matrix orthogonal (https://kellerjordan.github.io/posts/muon), and gets
about twice as far in the few thousand steps there are. Its rate is on AdamW's scale: an update's
root mean square is 0.2 of it (arXiv 2502.16982).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

Optimizers = tuple[torch.optim.Optimizer, ...]


def build_optimizers(
    parameters: Iterable[nn.Parameter], inner: Iterable[nn.Parameter], *, weight_decay: float
) -> Optimizers:
    """Build both; their rates are 0 until `set_rates`.

    Args:
        parameters: All that is trained.
        inner: Parameters of the layers; the matrices among them go to Muon, with weight decay.
        weight_decay: Of these matrices; nothing else is decayed.
    """
    matrices = [p for p in inner if p.ndim == 2 and p.requires_grad]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen and p.requires_grad]
    return (
        torch.optim.Muon(
            matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=0.0, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    )


def set_rates(optimizers: Sequence[torch.optim.Optimizer], *, muon: float, adamw: float) -> None:
    """Set the learning rates of a step."""
    for optimizer in optimizers:
        rate = muon if isinstance(optimizer, torch.optim.Muon) else adamw
        for group in optimizer.param_groups:
            group["lr"] = rate
