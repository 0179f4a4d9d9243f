"""Make a model trainable as a preset says, and say what that is before the first step."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.presets import Targets, find_targets, lora_config
from finetune.settings import FinetuneSettings
from omni.budget import readable_bytes
from omni.errors import RequestError
from omni.footprint import training_bytes
from omni.model import OmniModel
from omni.quantization.recipe import is_quantized

ADAM_BYTES = 8  # two float32 moments for each trained value
HALF_BYTES = 2  # of an activation in mixed precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """Parameters of one kind, over all layers that have them.

    Attributes:
        name: With ``*`` for the layer number.
        count: How many layers have it.
        shape: Of one of them; of a LoRA target the shape of its weight.
        how: ``whole``, or ``rank R``.
        trained: Values that are trained, all layers together.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    how: str
    trained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a run would train, and what that takes.

    Attributes:
        preset: As asked for.
        rows: One a kind of parameter.
        trained: Values trained.
        total: Values of the whole model, new adapters included.
        weight_bytes: Memory of all weights.
        gradient_bytes: Of the gradients.
        optimizer_bytes: Of AdamW's two moments.
        activation_bytes: Estimate for the decoder over `max_length` tokens, meant to be above what
            is used; towers and samples as they were opened come on top.
        max_length: Tokens that run through the model at once.
    """

    preset: str
    rows: tuple[TableRow, ...]
    trained: int
    total: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    max_length: int

    @property
    def share(self) -> float:
        """Share of the values that is trained."""
        return self.trained / self.total

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        fields = (
            *("preset", "trained", "total", "weight_bytes", "gradient_bytes", "optimizer_bytes"),
            *("activation_bytes", "max_length"),
        )
        rows = [
            {"name": r.name, "count": r.count, "shape": list(r.shape), "how": r.how,
             "trained": r.trained}
            for r in self.rows
        ]  # fmt: skip
        return {name: getattr(self, name) for name in fields} | {"share": self.share, "rows": rows}

    def lines(self) -> Iterator[str]:
        """For people; one line a row, then the sums."""
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            yield f"{row.name}  {row.count} x ({shape})  {row.how}  {row.trained:,} trained"
        yield (
            f"{self.trained:,} of {self.total:,} values are trained ({100 * self.share:.2f} %). "
            f"Weights {readable_bytes(self.weight_bytes)}, gradients "
            f"{readable_bytes(self.gradient_bytes)}, optimiser "
            f"{readable_bytes(self.optimizer_bytes)}; activations of the decoder at most about "
            f"{readable_bytes(self.activation_bytes)} for {self.max_length:,} tokens."
        )


def make_trainable(
    model: OmniModel, settings: FinetuneSettings
) -> tuple[nn.Module, Targets, Explanation]:
    """Freeze a model but for what the preset trains; add adapters where it names them.

    Args:
        model: Changed in place; its weights may be on the meta device.
        settings: The preset and the adapters' size; new adapters depend on the seed alone.

    Returns:
        What to call in training (the model, or PEFT's wrapper around it), the targets, and what
        to tell the user.

    Raises:
        RequestError: The preset does not fit the model, or the model is quantised.
    """
    if is_quantized(model):
        raise RequestError(
            "This model has int8 or int4 weights, which are not trained. Fine-tune the model that "
            "it was quantised from, then `omni merge` and `omni quantize` the result."
        )
    targets = find_targets(model, settings.preset, train_router=settings.train_router)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.requires_grad_(False)
    wrapped: nn.Module = model
    if targets.uses_lora:
        from peft import get_peft_model

        config = lora_config(
            targets,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            wrapped = get_peft_model(model, config)
    else:
        chosen = set(targets.whole)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    return wrapped, targets, _explain(model, wrapped, targets, shapes, settings)


def trained_parameters(wrapped: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name, in the model's order."""
    return {name: p for name, p in wrapped.named_parameters() if p.requires_grad}


def _explain(
    model: OmniModel,
    wrapped: nn.Module,
    targets: Targets,
    shapes: dict[str, tuple[int, ...]],
    settings: FinetuneSettings,
) -> Explanation:
    trained = trained_parameters(wrapped)
    rank = settings.lora_rank
    rows: dict[str, list[tuple[int, ...]]] = {}
    hows: dict[str, str] = {}
    sizes: dict[str, int] = {}
    lora = [*(f"{name}.weight" for name in targets.lora_modules), *targets.lora_parameters]
    for name in [*lora, *targets.whole]:
        kind = re.sub(r"\.\d+\.", ".*.", name)
        rows.setdefault(kind, []).append(shapes[name])
        hows[kind] = f"rank {rank}" if name in lora else "whole"
        *experts, out_features, in_features = shapes[name] if name in lora else (0, 0)
        adapter = rank * (out_features + in_features)
        for num in experts:
            adapter *= num
        size = adapter if name in lora else _count(shapes[name])
        sizes[kind] = sizes.get(kind, 0) + size
    return Explanation(
        preset=targets.preset,
        rows=tuple(
            TableRow(
                name=kind,
                count=len(found),
                shape=found[0],
                how=hows[kind],
                trained=sizes[kind],
            )
            for kind, found in rows.items()
        ),
        trained=sum(p.numel() for p in trained.values()),
        total=sum(p.numel() for p in wrapped.parameters()),
        weight_bytes=sum(p.numel() * p.element_size() for p in wrapped.parameters()),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained.values()),
        optimizer_bytes=ADAM_BYTES * sum(p.numel() for p in trained.values()),
        activation_bytes=training_bytes(
            model.config.text_config,
            settings.max_length,
            model.dtype.itemsize if settings.mixed_precision == "no" else HALF_BYTES,
            recompute=settings.gradient_checkpointing,
        ),
        max_length=settings.max_length,
    )


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
