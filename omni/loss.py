"""The training loss of the decoder."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omni.inputs import IGNORE_INDEX


def next_token_loss(
    logits: Float[Tensor, "batch seq vocab"],
    labels: Int[Tensor, "batch seq"],
    num_items_in_batch: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each label given everything before it, in float32.

    Args:
        logits: Scores at every position.
        labels: Targets at their own positions; -100 is ignored.
        num_items_in_batch: Divisor of the sum; the number of targets if None.

    Returns:
        The loss; zero (with a gradient path) when nothing is labelled.
    """
    targets = labels[:, 1:].to(logits.device)
    kept = targets != IGNORE_INDEX
    scores = logits[:, :-1][kept].float()  # (targets, vocab)
    total = F.cross_entropy(scores, targets[kept], reduction="sum")
    count = kept.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count
