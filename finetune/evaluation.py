"""Held-out rows: their loss, and how good generated answers are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.batches import ready
from finetune.bench.stats import Interval, mean_interval
from finetune.data import BadRow, Sample, num_targets
from finetune.data.encode import encode_prompt
from finetune.metrics import METRICS
from omni.assistant import Assistant
from omni.errors import OmniError, RequestError
from omni.options import MediaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One generated answer.

    Attributes:
        origin: Row of the data.
        true: Answer of the data.
        found: Generated answer.
        score: By the metric.
    """

    origin: str
    true: str
    found: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured on held-out rows.

    Attributes:
        loss: Mean over all target tokens.
        metric: Name of the metric; "none" if answers were not generated.
        score: Its mean with a 95 % bootstrap interval; None without a metric.
        examples: Every generated answer.
        bad: Rows that could not be used.
    """

    loss: float
    metric: str
    score: Interval | None
    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]

    @property
    def figure(self) -> float:
        """What runs are compared by, more is better: the score, or without one the loss."""
        return -self.loss if self.score is None else self.score.mean

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON, without the examples."""
        score = None if self.score is None else list(self.score)
        return {"loss": self.loss, "metric": self.metric, "score": score, "bad": len(self.bad)}


def evaluate(
    assistant: Assistant,
    samples: Iterable[Sample | BadRow],
    *,
    metric: str,
    options: MediaOptions,
    max_new_tokens: int,
    schema: Mapping[str, Any] | str | None = None,
) -> Evaluation:
    """Measure a model on samples.

    Args:
        assistant: Model and processor.
        samples: Held-out rows; those that cannot be used are listed.
        metric: A name of `finetune.metrics.METRICS`, or "none" for the loss alone.
        options: Sampling and reduction of samples that set none.
        max_new_tokens: Of an answer.
        schema: JSON Schema, or a file of one, that answers follow.

    Raises:
        RequestError: An unknown metric or schema, or no row that can be used.
    """
    if metric not in (*METRICS, "none"):
        raise RequestError(f"metric is {metric!r}; expected {', '.join(METRICS)} or none.")
    total, targets = 0.0, 0
    examples: list[Example] = []
    bad: list[BadRow] = []
    for sample in samples:
        if isinstance(sample, BadRow):
            bad.append(sample)
            continue
        row = ready(sample, assistant.processor, options)
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        if metric != "none":
            try:
                prompt, true = encode_prompt(
                    sample, assistant.processor, options=options, room=max_new_tokens
                )
            except OmniError as error:
                bad.append(BadRow(origin=sample.origin, reason=str(error)))
                continue
            [found] = assistant.answer_batch([prompt], max_new_tokens=max_new_tokens, schema=schema)
            score = _judge(metric, found, true, sample)
            origin = str(sample.origin)
            examples.append(Example(origin=origin, true=true, found=found, score=score))
        with torch.no_grad():
            loss = assistant.model(**row.to(assistant.model.device)).loss
        total += loss.item() * num_targets(row)
        targets += num_targets(row)
    if not targets:
        reasons = "; ".join(map(str, bad[:3])) or "there are none"
        raise RequestError(f"No held-out row can be used: {reasons}")
    return Evaluation(
        loss=total / targets,
        metric=metric,
        score=mean_interval([e.score for e in examples]) if examples else None,
        examples=tuple(examples),
        bad=tuple(bad),
    )


def choose_samples(rows: Sequence[Sample | BadRow], most: int, seed: int) -> list[Sample | BadRow]:
    """At most so many rows, always the same ones, in the order of the data."""
    if len(rows) <= most:
        return [rows[i] for i in range(len(rows))]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:most].sort().values
    return [rows[i] for i in chosen.tolist()]


def _judge(metric: str, found: str, true: str, sample: Sample) -> float:
    try:
        return METRICS[metric](found, true)
    except ValueError as error:
        raise RequestError(
            f"{sample.origin}: its answer {true[:60]!r} is none that metric {metric!r} can judge "
            f"({error}). Choose another metric."
        ) from error
