"""The one training loop.

    loss of a step = sum over all its target tokens of -log p, over their number

whatever rows, micro-batches or processes the samples fall into; with `guidance`, plus that weight
times what attention missed of its places (`finetune.guide`), over their number. Everything that a
step does follows from its number, the seed and the weights, so a run that was killed and goes on
ends with the weights of one that was not.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor

from finetune.balancing import Balancer
from finetune.batches import Batches, Step, num_steps
from finetune.data import BadRow, Dataset, Origin
from finetune.evaluation import Evaluation, choose_samples, evaluate
from finetune.guide import ReadingGuide
from finetune.log import MetricsLog
from finetune.saving import save_result
from finetune.settings import FinetuneSettings
from finetune.state import (
    check_same_run,
    load_best,
    load_state,
    refuse_to_start_over,
    save_best,
    save_state,
)
from finetune.trainable import Explanation, make_trainable, trained_parameters
from finetune.update import build_optimizer, train_step
from omni.adapters import fingerprint
from omni.assistant import Assistant
from omni.errors import RequestError
from omni.feature_cache import FeatureCache
from omni.model import OmniModel
from omni.options import MediaOptions
from omni.processor import OmniProcessor

BAD_ROWS_FILE = "bad_rows.jsonl"
# Settings that a resumed run may change. More or fewer steps bend the schedule from there on; none
# of the others touches what is learned.
MAY_CHANGE = frozenset(
    {
        "max_steps", "epochs", "eval_steps", "eval_samples", "metric", "patience", "max_new_tokens",
        "answer_schema",
        "save_steps", "max_bad_share", "cache_features", "tensorboard",
    }
)  # fmt: skip
# Rows seen before the share of bad ones is judged: one bad row among the first three is no share.
LEAST_ROWS = 50


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is; saved with the state, as JSON.

    Attributes:
        step: Steps done.
        seen: Rows of the data read, bad ones included.
        bad: Bad rows by position in the data.
        best: Best figure of an evaluation so far.
        waited: Evaluations since then.
        stopped: Whether the run ended early.
    """

    step: int = 0
    seen: int = 0
    bad: dict[int, dict[str, Any]] = field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    stopped: bool = False

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Progress":
        """From `save_state`'s JSON, whose keys are text."""
        values = {name: saved[name] for name in cls.__slots__}
        return cls(**{**values, "bad": {int(k): v for k, v in saved["bad"].items()}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run did.

    Attributes:
        steps: Optimiser steps done.
        explanation: What was trained.
        before: Evaluation of the base; None without held-out rows.
        after: Evaluation at the end.
        bad: Rows that were left out.
    """

    steps: int
    explanation: Explanation
    before: Evaluation | None
    after: Evaluation | None
    bad: tuple[BadRow, ...]


def finetune(
    model: OmniModel,
    processor: OmniProcessor,
    dataset: Dataset,
    settings: FinetuneSettings,
    out: Path,
    *,
    base: str,
    held_out: Dataset | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Result:
    """Train a model on data.

    1. Freeze all but the preset's targets; say what they are.
    2. For each step: rows of this process, loss over all target tokens of all processes, one
       update; now and then save the state, and evaluate.
    3. Save the adapter (or the whole model, if it was trained whole), with a card.

    Args:
        model: Trained in place.
        processor: Of the same checkpoint.
        dataset: Rows to learn from.
        settings: How.
        out: Folder for state, metrics and result.
        base: Name of the checkpoint that the model came from, for the adapter's reference.
        held_out: Rows to evaluate on; None leaves evaluation out.
        resume: Go on from the newest state in `out`, if there is one.
        tell: Gets lines for people.
        report: Gets one row of figures a step.

    Returns:
        What was done.

    Raises:
        RequestError: The preset does not fit, no row can be used, or too many rows are bad.
        CheckpointError: `out` holds the state of another run, or of one that is not resumed.
    """
    accelerator = Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    is_main = accelerator.is_main_process
    if not resume:
        refuse_to_start_over(out)
    base_fingerprint = fingerprint(model)
    identity = identity_of(settings, dataset, base_fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    judge = _Judge(model, processor, held_out, settings, base) if held_out is not None else None
    before = judge.measure() if judge is not None and is_main else None

    wrapped, targets, explanation = make_trainable(model, settings)
    if is_main:
        for line in explanation.lines():
            tell(line)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trained = trained_parameters(wrapped)
    balancer = Balancer(model, settings.balance_rate)
    guide = ReadingGuide(model) if settings.guidance else None
    optimizer = build_optimizer(trained, settings)
    # Before the model is prepared, whose parameters may move.
    tensors = {**trained, **balancer.biases}
    progress = Progress()
    if resume and (saved := load_state(out, tensors, optimizer)) is not None:
        check_same_run(saved["run"], identity)
        progress = Progress.read(saved)
        tell(f"Resumed at step {progress.step}.")
    prepared, optimizer = accelerator.prepare(wrapped, optimizer)

    total = num_steps(len(dataset), settings)
    batches = Batches(
        dataset,
        processor,
        settings,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        cache=_feature_cache(model, settings),
    )
    log = MetricsLog(out, progress.step, tensorboard=settings.tensorboard) if is_main else None
    started = time.perf_counter()  # waiting for data is part of a step
    for step in batches.steps(progress.step, total) if not progress.stopped else ():
        rate = settings.rate_at(progress.step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_seed_of(settings, progress.step, accelerator.process_index))
        prepared.train()
        with balancer:
            loss, norm, counts = train_step(accelerator, prepared, optimizer, step, settings, guide)
        progress.step += 1
        _note_bad(progress, step, settings, dataset, out, accelerator)
        seconds = time.perf_counter() - started
        row = {
            "step": progress.step,
            "of": total,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": counts["tokens"],
            "target_tokens": counts["targets"],
            **({"missed": counts["missed"]} if guide is not None else {}),
            "seconds": round(seconds, 4),
            "target_tokens_per_s": round(counts["targets"] / seconds, 2),
            "peak_mib": round(_peak_mib()),
            "bad_rows": len(progress.bad),
        }
        is_last = progress.step == total
        if judge is not None and settings.eval_steps and not is_last:
            if progress.step % settings.eval_steps == 0 and is_main:
                _judge_now(judge, progress, settings, row, tensors, out)
            progress.stopped = _agreed(accelerator, progress.stopped)
        if is_main and log is not None:
            log.write(row)
            report(row)
            if progress.step % settings.save_steps == 0 or is_last or progress.stopped:
                saved = {**asdict(progress), "run": identity}
                save_state(out, progress.step, tensors, optimizer.optimizer, saved)
        if progress.stopped:
            break
        started = time.perf_counter()

    if guide is not None:
        guide.close()
    model.eval()
    after = judge.measure() if judge is not None and is_main else None
    if after is not None and progress.best is not None and progress.best > after.figure:
        tell("An earlier evaluation was better than the last: its weights are the result.")
        load_best(out, tensors)
        after = judge.measure() if judge is not None else None
    bad = tuple(_as_bad_row(entry) for _, entry in sorted(progress.bad.items()))
    result = Result(
        steps=progress.step, explanation=explanation, before=before, after=after, bad=bad
    )
    if is_main:
        save_result(
            accelerator.unwrap_model(prepared),
            model,
            processor,
            targets,
            settings,
            result,
            out,
            base,
            base_fingerprint,
            balancer.biases,
        )
    accelerator.wait_for_everyone()
    return result


def _feature_cache(model: OmniModel, settings: FinetuneSettings) -> FeatureCache | None:
    if not settings.cache_features:
        return None
    towers = [tower for tower in (model.vision_model, model.audio_tower) if tower is not None]
    if any(p.requires_grad for tower in towers for p in tower.parameters()):
        raise RequestError(
            "Features cannot be cached while the towers are trained: they change with every "
            "step. Leave cache_features out, or choose a preset without towers."
        )
    return FeatureCache(Path(settings.cache_features), model)


class _Judge:
    """Evaluates the model on the same held-out rows every time."""

    def __init__(
        self,
        model: OmniModel,
        processor: OmniProcessor,
        held_out: Dataset,
        settings: FinetuneSettings,
        name: str,
    ) -> None:
        self.assistant = Assistant(model, processor, name=name)
        self.samples = choose_samples(held_out, settings.eval_samples, settings.seed)
        self.settings = settings

    def measure(self) -> Evaluation:
        """Loss and answers."""
        self.assistant.model.eval()
        return evaluate(
            self.assistant,
            self.samples,
            metric=self.settings.metric,
            options=MediaOptions(reduction=self.settings.reduction),
            max_new_tokens=self.settings.max_new_tokens,
            schema=self.settings.answer_schema,
        )


def _judge_now(
    judge: _Judge,
    progress: Progress,
    settings: FinetuneSettings,
    row: dict[str, Any],
    tensors: Mapping[str, Tensor],
    out: Path,
) -> None:
    """Evaluate between two steps, and keep the best weights."""
    found = judge.measure()
    row["eval"] = found.to_dict()
    if progress.best is None or found.figure > progress.best:
        progress.best, progress.waited = found.figure, 0
        save_best(out, tensors)
    else:
        progress.waited += 1
        progress.stopped = bool(settings.patience) and progress.waited >= settings.patience


def _note_bad(
    progress: Progress,
    step: Step,
    settings: FinetuneSettings,
    dataset: Dataset,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Write bad rows down once each; stop when there are too many."""
    entries = [{"index": index, **bad.to_dict()} for index, bad in step.bad.items()]
    if accelerator.num_processes > 1:
        entries = gather_object(entries)
    progress.seen += settings.samples_per_step
    new = [e for e in entries if e["index"] not in progress.bad]
    progress.bad.update({e["index"]: e for e in new})
    if accelerator.is_main_process and new:
        text = "".join(json.dumps(progress.bad[i]) + "\n" for i in sorted(progress.bad))
        (out / BAD_ROWS_FILE).write_text(text)
    rows = min(progress.seen, len(dataset))
    share = len(progress.bad) / rows
    if share > settings.max_bad_share and rows >= min(LEAST_ROWS, len(dataset)):
        listed = "\n".join(str(_as_bad_row(e)) for e in list(progress.bad.values())[:20])
        raise RequestError(
            f"{len(progress.bad)} of {rows} rows are bad, more than max_bad_share "
            f"{settings.max_bad_share:g}:\n{listed}\nAll are in {out / BAD_ROWS_FILE}. Correct "
            "them, or raise max_bad_share."
        )


def _as_bad_row(entry: Mapping[str, Any]) -> BadRow:
    origin = Origin(file=entry["file"], row=entry["row"], key=entry.get("key", ""))
    return BadRow(origin=origin, reason=entry["reason"])


def identity_of(settings: FinetuneSettings, dataset: Dataset, base: str) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had never stopped.

    Args:
        settings: Of the run.
        dataset: Rows to learn from.
        base: `omni.adapters.fingerprint` of the model before training.
    """
    kept = {k: v for k, v in settings.to_dict().items() if k not in MAY_CHANGE}
    return {**kept, "rows": len(dataset), "data": dataset.digest(), "base": base}


def _seed_of(settings: FinetuneSettings, step: int, rank: int) -> int:
    return int(np.random.default_rng([settings.seed, 4, step, rank]).integers(2**63))


def _agreed(accelerator: Accelerator, stopped: bool) -> bool:
    """Whether the main process wants to stop."""
    flag = torch.tensor(int(stopped), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


def _peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
