"""Train the vision tower of `omni-tiny` with direct heads.

    omni finetune --recipe omni-tiny-1

Writes `vision_model.safetensors` (names of transformers' `RadioModel`), `heads.safetensors`,
`metrics.json` and a line of figures per evaluation in `metrics.jsonl`. A stopped run goes on
from its last checkpoint with `--resume`. One core trains, a worker process makes the batches.
"""

import argparse
import json
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import RadioModel

from finetune.tiny.optimizers import build_optimizers, set_rates
from finetune.tiny.precision import bfloat16_is_faster
from finetune.tiny.schedule import share_of_run, warm_up
from finetune.tiny.vision_batches import BatchSizes, VisionBatches, validation_tasks
from finetune.tiny.vision_data import IGNORE, Task, spell
from finetune.tiny.vision_tower import VisionHeads, build_tower, encode, fold, tower_config

logger = logging.getLogger(__name__)

# Weight of each target in the loss: a mean over its items, whatever their number.
LOSS_WEIGHTS = {
    "photo": 0.6,
    "digit": 0.3,
    "reading": 1.5,
    "symbol": 1.5,
    "index": 0.5,
    "colour": 0.3,
    "shape": 0.2,
    "direction": 0.5,
    "cover": 1.0,
    "thing_colour": 0.5,
    "thing_shape": 0.8,
    "centre": 0.5,
    "outermost": 0.5,
    "rank": 0.7,
    "count": 0.4,
}
# Most places of a line picture show no text; at full weight they would drown the characters.
NOTHING_WEIGHTS = {
    "reading": 0.3,
    "symbol": 0.15,
    "index": 0.15,
    "cover": 0.15,
    "thing_colour": 0.15,
    "thing_shape": 0.15,
    "centre": 0.15,
    "rank": 0.15,
}

CONTINUED_RATE = 0.35  # of the learning rates, in a run that starts from trained weights


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTraining:
    """Settings of one run.

    Attributes:
        steps: Optimiser steps; the learning rate ends at 0 there.
        minutes: If given, end after this time too; on a machine that others use, a run then ends
            when it should.
        sizes: Items of each task in a step.
        learning_rate: AdamW's highest learning rate.
        muon_learning_rate: Muon's highest learning rate; an update's root mean square is 0.2 of it.
        weight_decay: Muon's, on the matrices of the tower's layers only.
        warmup_steps: Steps of linear warm-up of both learning rates, or a fifth of all; a cosine
            falls to 0.
        max_grad_norm: Gradients are clipped to this norm.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between evaluations on a part of the validation set.
        validation_items: Items a task in such a part; the last evaluation has eight times as many
            real ones and twice as many drawn ones.
        seed: Seed of weights and data.
        bfloat16: Multiply matrices in bfloat16; weights stay float32. By default, if it is faster.
        num_workers: Processes that make batches; 0 makes them in the training process.
        reads: The run starts from a tower that reads, so that few lines are easy.
        head_steps: Steps in which only the heads learn, where some are fresh on a trained tower.
    """

    steps: int
    minutes: float | None = None
    sizes: BatchSizes = field(default_factory=BatchSizes)
    learning_rate: float = 1.5e-3
    muon_learning_rate: float = 6e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    max_grad_norm: float = 1.0
    save_every: int = 200
    evaluate_every: int = 400
    validation_items: int = 320
    seed: int = 0
    bfloat16: bool = field(default_factory=bfloat16_is_faster)
    num_workers: int = 1
    reads: bool = False
    head_steps: int = 200

    def continued(self, rates: float = CONTINUED_RATE) -> "VisionTraining":
        """Return the settings of a run that starts from trained weights.

        Args:
            rates: Share of the learning rates; the less time there is, the smaller.
        """
        return replace(
            self,
            reads=True,
            learning_rate=rates * self.learning_rate,
            muon_learning_rate=rates * self.muon_learning_rate,
        )

    def share_done(self, step: int, seconds: float) -> float:
        """Say how much of the run is over, by steps or by the clock, from 0 to 1."""
        return share_of_run(step, self.steps, seconds, self.minutes)

    def schedule_at(self, step: int, seconds: float = 0.0) -> float:
        """Return the share of the highest learning rates at a step counted from 0."""
        warm = warm_up(step, self.steps, self.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * self.share_done(step, seconds)))


def head_scores(
    tower: RadioModel, heads: VisionHeads, tasks: Sequence[Task]
) -> list[dict[str, Tensor]]:
    """Run tower and heads.

    Args:
        tower: Vision tower.
        heads: Direct heads.
        tasks: What to encode; the keys of its targets say which heads are asked.

    Returns:
        For each task, scores by target name, float32, classes last.
    """
    scores: list[dict[str, Tensor]] = []
    for task, features in zip(tasks, encode(tower, [task.part for task in tasks]), strict=True):
        tokens = fold(features, task.part.grid)
        found: dict[str, Tensor] = {}
        if "reading" in task.targets:
            found["reading"] = heads.reading(tokens)
        if "symbol" in task.targets:
            symbol, index = heads.place(features)
            found["symbol"] = symbol
            if "index" in task.targets:
                found["index"] = index
        if "cover" in task.targets:
            found["cover"] = heads.cover(features)
        if "centre" in task.targets:
            found.update(heads.scene(features))
        for name in ("photo", "digit", "colour", "shape", "direction", "count"):
            if name in task.targets:
                found[name] = heads.get_submodule(name)(tokens)
        scores.append({name: score.float() for name, score in found.items()})
    return scores


def total_loss(scores: Sequence[dict[str, Tensor]], tasks: Sequence[Task]) -> Tensor:
    """Return the weighted sum of the cross entropies of all targets."""
    losses = []
    for found, task in zip(scores, tasks, strict=True):
        for name, score in found.items():
            if not (task.targets[name] != IGNORE).any():
                continue  # its mean would be none
            class_weights = score.new_ones(score.shape[-1])
            class_weights[0] = NOTHING_WEIGHTS.get(name, 1.0)
            loss = F.cross_entropy(
                score.flatten(0, -2),
                task.targets[name].flatten(),
                class_weights,
                ignore_index=IGNORE,
            )
            losses.append(LOSS_WEIGHTS[name] * loss)
    return torch.stack(losses).sum()


@torch.no_grad()
def evaluate(
    tower: RadioModel, heads: VisionHeads, tasks: Iterable[Task], *, bfloat16: bool
) -> dict[str, float]:
    """Measure tower and heads.

    Args:
        tower: Vision tower.
        heads: Direct heads.
        tasks: Examples never trained on.
        bfloat16: As in training.

    Returns:
        Accuracies by `task/target`, and `task/character_error` (edits per character).
    """
    right: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    for task in tasks:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = head_scores(tower, heads, [task])[0]
        for name, score in found.items():
            target = task.targets[name]
            if name == "reading":
                texts = [spell(row) for row in score.argmax(-1).tolist()]
                for text, truth in zip(texts, task.texts, strict=True):
                    right[f"{task.name}/character_error"] += edit_distance(text, truth)
                    total[f"{task.name}/character_error"] += len(truth)
                    right[f"{task.name}/exact"] += text == truth
                    total[f"{task.name}/exact"] += 1
                continue
            # Places without text would hide how well characters are told apart.
            counted = target > 0 if name in NOTHING_WEIGHTS else target != IGNORE
            right[f"{task.name}/{name}"] += float((score.argmax(-1) == target)[counted].sum())
            total[f"{task.name}/{name}"] += float(counted.sum())
    return {name: round(right[name] / total[name], 4) for name in sorted(total)}


def edit_distance(found: str, expected: str) -> int:
    """Return the least number of insertions, deletions and replacements between two texts."""
    previous = list(range(len(expected) + 1))
    for i, a in enumerate(found, start=1):
        current = [i]
        for j, b in enumerate(expected, start=1):
            change = previous[j - 1] + (a != b)
            current.append(min(previous[j] + 1, current[-1] + 1, change))
        previous = current
    return previous[-1]


def train(
    data: Path,
    out: Path,
    settings: VisionTraining,
    *,
    resume: bool = False,
    initial: Path | None = None,
) -> None:
    """Train tower and heads, and leave the weights and their figures in a folder.

    Args:
        data: Folder of the training data.
        out: Folder for weights, checkpoint and figures; made if missing.
        settings: Settings of the run.
        resume: Go on from the checkpoint in `out` if there is one.
        initial: Folder of an earlier run whose weights this one starts from, with a fresh schedule.
            If it lacks some heads (an unpacked checkpoint has none), the heads learn alone for the
            first `head_steps`.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    tower = build_tower(tower_config())
    heads = VisionHeads(tower.config.hidden_size)
    head_steps = 0
    if initial is not None and _load_initial(initial, tower, heads):
        head_steps = settings.head_steps
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizers = build_optimizers(
        parameters, tower.encoder.parameters(), weight_decay=settings.weight_decay
    )
    first_step, done, seconds, samples = 0, 0, 0.0, Counter[str]()
    if resume and (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        tower.load_state_dict(load_file(out / "vision_model.safetensors"))
        heads.load_state_dict(load_file(out / "heads.safetensors"))
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step, seconds = state["step"], state["seconds"]
        done = first_step
        samples.update(state["samples"])
        logger.info("resumed at step %d", first_step)

    batches = DataLoader(
        VisionBatches(data, settings.seed, settings.steps, settings.sizes, reads=settings.reads),
        sampler=range(first_step, settings.steps),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=settings.num_workers,
        prefetch_factor=6 if settings.num_workers else None,
    )
    held_out = validation_tasks(data, settings.validation_items, settings.validation_items)
    started, mean_loss = time.monotonic() - seconds, 0.0
    for step, tasks in enumerate(batches, start=first_step):
        share = settings.schedule_at(step, seconds)
        set_rates(
            optimizers,
            muon=share * settings.muon_learning_rate,
            adamw=share * settings.learning_rate,
        )
        tower.requires_grad_(step >= head_steps)
        tower.zero_grad()
        heads.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            scores = head_scores(tower, heads, tasks)
        loss = total_loss(scores, tasks)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()

        samples.update({task.name: len(task.part.patches) for task in tasks})
        done, seconds = step + 1, time.monotonic() - started
        is_last = settings.share_done(done, seconds) >= 1
        mean_loss += (loss.item() - mean_loss) / min(done - first_step, 50)
        if done % 50 == 0:
            logger.info("step %d loss %.3f, %.2f s a step", done, mean_loss, seconds / done)
        if done % settings.evaluate_every == 0 and not is_last:
            figures = evaluate(tower, heads, held_out, bfloat16=settings.bfloat16)
            _append(out, {"step": done, "seconds": round(seconds), "loss": mean_loss, **figures})
        if done % settings.save_every == 0 or is_last:
            progress = {"step": done, "seconds": seconds, "samples": dict(samples)}
            _save(out, tower, heads, optimizers, progress)
        if is_last:
            break

    items = settings.validation_items
    figures = evaluate(tower, heads, validation_tasks(data, 8 * items, 2 * items), bfloat16=False)
    report = {
        "steps": done,
        "seconds": round(seconds),
        "samples": dict(samples),
        "validation": figures,
    }
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    _append(out, {"step": done, "seconds": round(seconds), "final": True, **figures})


def _load_initial(folder: Path, tower: RadioModel, heads: VisionHeads) -> bool:
    """Load the weights of an earlier run, and say whether some heads are left as they were."""
    tower.load_state_dict(load_file(folder / "vision_model.safetensors"))
    file = folder / "heads.safetensors"
    return not file.is_file() or bool(
        heads.load_state_dict(load_file(file), strict=False).missing_keys
    )


def _as_it_is(tasks: list[Task]) -> list[Task]:
    return tasks  # the loader's own conversion would turn named tuples into lists


def _append(out: Path, row: dict[str, object]) -> None:
    logger.info("%s", row)
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _save(
    out: Path,
    tower: RadioModel,
    heads: VisionHeads,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, object],
) -> None:
    """Write weights and optimiser state; each file is replaced whole."""
    save_file(tower.state_dict(), out / "vision_model.new")
    save_file(heads.state_dict(), out / "heads.new")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"optimizers": states, **progress}, out / "checkpoint.new")
    (out / "vision_model.new").replace(out / "vision_model.safetensors")
    (out / "heads.new").replace(out / "heads.safetensors")
    (out / "checkpoint.new").replace(out / "checkpoint.pt")


def _items(text: str) -> tuple[str, int]:
    task, _, count = text.partition("=")
    if task not in BatchSizes._fields or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}; expected for example line=30")
    return task, int(count)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and figures")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps")
    parser.add_argument("--minutes", type=float, help="end after this time, if not done before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--initial", type=Path, help="start from the weights of an earlier run")
    parser.add_argument(
        "--continued-rate",
        type=float,
        default=CONTINUED_RATE,
        help="share of the learning rates, with --initial",
    )
    parser.add_argument(
        "--items",
        action="append",
        default=[],
        type=_items,
        metavar="TASK=COUNT",
        help=f"items of a task in a step; one of {', '.join(BatchSizes._fields)}",
    )
    parser.add_argument("--threads", type=int, default=1, help="cores of the training process")
    parser.add_argument(
        "--validation-items",
        type=int,
        default=VisionTraining(steps=1).validation_items,
        help="held-out items a task",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    sizes = BatchSizes()._replace(**dict(options.items))
    plain = VisionTraining(
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        sizes=sizes,
        validation_items=options.validation_items,
    )
    # The full rates wipe out in a hundred steps what a trained tower knows.
    settings = plain if options.initial is None else plain.continued(options.continued_rate)
    train(
        options.data,
        options.out,
        settings,
        resume=options.resume,
        initial=options.initial,
    )


if __name__ == "__main__":
    main()
