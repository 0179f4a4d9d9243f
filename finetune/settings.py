"""All settings of a fine-tuning run, and how they are read from ``key=value``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omni.errors import RequestError

Schedule = Literal["cosine", "wsd", "constant"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """How to train; what is trained is the preset's.

    Attributes:
        preset: Names of `finetune.presets.PRESETS`, joined with ``+``.
        max_steps: Optimiser steps; None follows from ``epochs``.
        epochs: Passes over the data, if ``max_steps`` is not given.
        samples_per_step: Conversations in an optimiser step, over all processes.
        max_length: Tokens that run through the model at once, and of the longest sample; more needs
            more memory.
        packing: Pack short samples into rows, of which none sees another; otherwise samples of
            like length are padded to a batch, as decoders without segments need it.
        reduce_to_fit: Lower the media of a sample that is too long, instead of leaving it out.
        learning_rate: Highest learning rate of AdamW.
        schedule: After the warm-up, ``cosine`` to 0, ``wsd`` (flat, then linear to 0 over the last
            ``decay_share`` of the steps) or ``constant``.
        warmup_steps: Steps of linear warm-up.
        decay_share: Share of the steps in which ``wsd`` falls.
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
        lora_rank: Inner width of adapters.
        lora_alpha: Adapters are scaled by ``lora_alpha / lora_rank``.
        lora_dropout: Dropout of adapters' inputs.
        train_router: Whether presets that train experts whole also change their routers.
        balance_rate: Step by which the routers' correction biases are nudged towards equal load
            after every step (loss-free balancing, arXiv 2408.15664); 0 leaves them.
        guidance: Weight of the loss of where attention reads (`finetune.guide`), for rows that say
            what their pictures show; 0 leaves it out.
        mixed_precision: accelerate's: no, bf16 or fp16.
        gradient_checkpointing: Recompute decoder layers in the backward pass to save memory.
        reduction: Reduction specs by modality, such as ``video=evs(0.5)``, for all samples that
            set none.
        eval_share: Share of the rows that is held out if no evaluation data are given; 0 is none.
        eval_steps: Steps between evaluations; 0 evaluates at the end only.
        eval_samples: Most held-out samples of an evaluation.
        metric: What generated answers are judged by: exact, anls, wer, cer, f1 or json_anls;
            "none" judges by the loss alone.
        patience: Stop after so many evaluations without improvement; 0 never stops early.
        max_new_tokens: Of generated answers in evaluations.
        answer_schema: JSON Schema, or a file of one, which these answers follow; None: free text.
        save_steps: Steps between two savings of the state.
        cache_features: Folder that keeps what the frozen towers gave for each medium, so that it is
            encoded once; None encodes in every step.
        tensorboard: Also write what TensorBoard reads; needs the package.
        max_bad_share: Share of bad rows above which training stops and lists them.
        seed: Seed of data order, dropout and new adapters.
    """

    preset: str = "lora-all"
    max_steps: int | None = None
    epochs: float = 1.0
    samples_per_step: int = 8
    max_length: int = 4096
    packing: bool = True
    reduce_to_fit: bool = False
    learning_rate: float = 2e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 10
    decay_share: float = 0.2
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    train_router: bool = False
    balance_rate: float = 0.0
    guidance: float = 0.0
    mixed_precision: Precision = "no"
    gradient_checkpointing: bool = False
    reduction: Mapping[str, str] = field(default_factory=dict)
    eval_share: float = 0.1
    eval_steps: int = 0
    eval_samples: int = 64
    metric: str = "exact"
    patience: int = 0
    max_new_tokens: int = 64
    answer_schema: Mapping[str, Any] | str | None = None
    save_steps: int = 50
    max_bad_share: float = 0.1
    cache_features: str | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (is_right, expected) in _checks(self).items():
            if not is_right:
                raise RequestError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def rate_at(self, step: int, num_steps: int) -> float:
        """Learning rate of a step counted from 0, of `num_steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (num_steps - step) / max(1, num_steps - self.warmup_steps)  # 1 ... just above 0
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
        if self.schedule == "wsd":
            return self.learning_rate * min(
                1.0, (num_steps - step) / (num_steps * self.decay_share)
            )
        return self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def changed(self, overrides: Mapping[str, Any]) -> "FinetuneSettings":
        """The same settings with some replaced.

        Raises:
            RequestError: An unknown name, or a value that is none of its kind.
        """
        known = {f.name for f in fields(self)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise RequestError(
                f"Unknown setting {unknown[0]!r}; expected one of {', '.join(sorted(known))}."
            )
        return replace(self, **{k: _converted(k, v) for k, v in overrides.items()})


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Read ``key=value`` words.

    Raises:
        RequestError: A word without ``=``.
    """
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise RequestError(f"Found {word!r}; expected key=value, such as learning_rate=1e-4.")
        pairs[key.strip()] = value.strip()
    return pairs


def _converted(name: str, value: Any) -> Any:
    """A value of a setting's type, from text or as it came from YAML."""
    hint = get_type_hints(FinetuneSettings)[name]
    if name == "reduction":
        return _specs(value)
    if name == "answer_schema" and isinstance(value, Mapping):
        return value
    if value is None or (isinstance(value, str) and value.lower() == "none" and name != "metric"):
        if type(None) in get_args(hint):
            return None
        raise RequestError(f"{name} is {value!r}; expected a value.")
    if get_origin(hint) is Literal:
        value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        if value not in get_args(hint):
            raise RequestError(f"{name} is {value!r}; expected one of {', '.join(get_args(hint))}.")
        return value
    if name == "answer_schema":
        return str(value)
    kind = next(k for k in (get_args(hint) or (hint,)) if k is not type(None))
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise RequestError(f"{name} is {value!r}; expected true or false.")
        return words[str(value).lower()]
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError  # `int` would cut it
        return kind(value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} is {value!r}; expected a {kind.__name__}.") from error


def _specs(value: Any) -> Mapping[str, str]:
    if isinstance(value, Mapping):
        return value
    specs: dict[str, str] = {}
    if value is None or str(value).lower() in ("", "none"):
        return specs
    for part in str(value).split(";"):
        modality, equals, spec = part.partition("=")
        if not equals:
            raise RequestError(
                f"reduction is {value!r}; expected modality=spec, such as 'video=evs(0.5)', with "
                "';' between several."
            )
        specs[modality.strip()] = spec.strip()
    return specs


def _checks(s: FinetuneSettings) -> dict[str, tuple[bool, str]]:
    return {
        "max_steps": (s.max_steps is None or s.max_steps >= 1, "at least 1"),
        "epochs": (s.epochs > 0, "a number above 0"),
        "samples_per_step": (s.samples_per_step >= 1, "at least 1"),
        "max_length": (s.max_length >= 16, "at least 16 tokens"),
        "learning_rate": (s.learning_rate > 0, "a number above 0"),
        "warmup_steps": (s.warmup_steps >= 0, "0 or more"),
        "decay_share": (0 < s.decay_share <= 1, "a share above 0, at most 1"),
        "max_grad_norm": (s.max_grad_norm > 0, "a number above 0"),
        "guidance": (
            s.guidance >= 0 and not (s.guidance and s.gradient_checkpointing),
            "0 or more, and 0 with gradient_checkpointing, which runs layers twice",
        ),
        "lora_rank": (s.lora_rank >= 1, "at least 1"),
        "lora_dropout": (0 <= s.lora_dropout < 1, "a share from 0 to below 1"),
        "eval_share": (0 <= s.eval_share < 1, "a share from 0 to below 1"),
        "eval_steps": (s.eval_steps >= 0, "0 or more"),
        "save_steps": (s.save_steps >= 1, "at least 1"),
        "max_bad_share": (0 <= s.max_bad_share <= 1, "a share from 0 to 1"),
    }
