"""One update of the weights, over the rows of all processes."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune.batches import Step
from finetune.guide import ReadingGuide, find_places
from finetune.settings import FinetuneSettings
from omni.errors import RequestError
from omni.inputs import OmniInputs


def build_optimizer(
    trained: Mapping[str, nn.Parameter], settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices only; its rate is set before every step."""
    matrices = [p for p in trained.values() if p.ndim >= 2]
    others = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), foreach=False)


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    step: Step,
    settings: FinetuneSettings,
    guide: ReadingGuide | None = None,
) -> tuple[float | None, float, dict[str, Any]]:
    """Update the weights once; a step without a single good row changes nothing.

    Args:
        accelerator: Of the run.
        model: Prepared by it.
        optimizer: Likewise.
        step: Rows of this process.
        settings: Of the run.
        guide: Watches the model, where attention is guided.

    Returns:
        The loss (None where no row is good) and the norm of the gradients over all processes, how
        many tokens and target tokens there were, and what attention missed, a mean over the places
        that are known (None where none is).

    Raises:
        RequestError: The loss or the gradients are not finite; the weights are as before.
    """
    counts = torch.tensor(
        [step.num_tokens, step.num_targets, step.num_marks], device=accelerator.device
    )
    tokens, targets, marks = accelerator.reduce(counts, "sum").tolist()
    found: dict[str, Any] = {"tokens": tokens, "targets": targets, "missed": None}
    if not targets:
        return None, 0.0, found
    # Processes average their gradients, and each divides by the targets of all of them.
    share = accelerator.num_processes / targets
    guided = settings.guidance * accelerator.num_processes / max(marks, 1)
    optimizer.zero_grad()
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # loss, missed
    rows = step.rows or [_idle_row()]
    for number, row in enumerate(rows):
        waits = number + 1 < len(rows)
        with accelerator.no_sync(model) if waits else nullcontext():
            summed = model(**row.to(accelerator.device), num_items_in_batch=1).loss
            weight = share if step.rows else 0.0
            loss = summed * weight
            places = find_places(row) if guide is not None else None
            if guide is not None and places is not None:
                with accelerator.autocast():
                    missed = guide.loss(places)
                loss = loss + guided * missed
                totals[1] += missed.detach().double()
            accelerator.backward(loss)
        totals[0] += summed.detach().double() if step.rows else 0.0
    norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    summed_loss, summed_missed = accelerator.reduce(totals, "sum").tolist()
    # With fp16 the scaler leaves a step out whose gradients overflow, and lowers its factor.
    is_scaled = settings.mixed_precision == "fp16"
    check_finite(summed_loss / targets, 0.0 if norm is None or is_scaled else float(norm))
    optimizer.step()
    if guide is not None and marks:
        found["missed"] = summed_missed / marks
    return (
        summed_loss / targets,
        float(norm) if norm is not None else float("nan"),
        found,
    )


def check_finite(loss: float, norm: float) -> None:
    """Stop a training that has diverged, before an update spoils its weights.

    Args:
        loss: Of the step.
        norm: Of its gradients.

    Raises:
        RequestError: One of them is not finite.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RequestError(
            f"Training has diverged: the loss is {loss:.4g}, the norm of the gradients {norm:.4g}. "
            "The last saved state is good. Start anew in another folder with a lower learning_rate "
            "or more warmup_steps, or without mixed_precision."
        )


def _idle_row() -> OmniInputs:
    """A row of no weight for a process without rows, since all must take part in the averaging."""
    ids = torch.zeros((1, 2), dtype=torch.long)
    return OmniInputs(input_ids=ids, attention_mask=torch.ones_like(ids).bool(), labels=ids)
