"""Learned against training-free, uniform and random reduction, where small things matter.

    python benchmarks/learned_reduction.py --work RUN --out benchmarks/results

Puzzles are drawn by code (`finetune/bench/synthetic.py`): a digit shown for three frames of a clip,
a short pure tone among buzzes, a small white digit in a corner of a page full of coloured ones. A
model of half a million parameters learns them from nothing (`finetune/bench/toy.py`), its decoder
also with media reduced in all ways that need no training. It is then frozen and a scorer for each
modality is trained through the answers at rates from 0 to 85 % (`finetune/scorer.py`). All reducers
meet the same weights and the same cases.

1. Train: sight, base, scorers; each stage is kept in --work, and a stopped run goes on.
2. Choose the training-free rival of each task: of those that remove 75 % here, the one with most
   right answers on a set of its own.
3. Ask the test set at 75 %, all reducers with as many tokens; differences are paired, a task at a
   time and over all cases, with 95 % bootstrap intervals. `random` is the mean of several seeds for
   each case.
4. Ask a part of it at other rates for the curve.

Prints one JSON line; with --out also writes it, and a picture of the curves.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from finetune.bench.stats import mean_interval, paired_difference
from finetune.bench.synthetic import TASKS, Conversations, Puzzle, Puzzles
from finetune.bench.toy import MAX_RATE, TRAINING_FREE, build_toy, train_base, train_sight
from finetune.scorer import ScorerTraining, train_scorers
from omni.encoding import source_layout
from omni.inputs import IGNORE_INDEX, OmniInputs, collate
from omni.model import OmniModel
from omni.options import MediaOptions
from omni.processor import OmniProcessor
from token_reduction import TokenLayout, build

RATE = 0.75
CURVE_RATES = (0.2, 0.4, 0.6, 0.8)
RANDOM_SEEDS = (0, 1, 2)
SCORER_SEED, CHOICE_SEED, TEST_SEED = 11, 12, 13
BATCH = 30

ORDER = ("learned", "training_free", "uniform", "random")  # each should beat the next

Tokens = tuple[torch.Tensor, TokenLayout]
Quality = dict[str, list[float]]  # of each reducer, a verdict a case


class Asker:
    """Asks the puzzles of one task under any reducer; towers run once for each puzzle.

    Args:
        model: Of the product.
        processor: Of the model.
        puzzles: What is asked.
    """

    def __init__(
        self, model: OmniModel, processor: OmniProcessor, puzzles: Sequence[Puzzle]
    ) -> None:
        self.model, self.processor, self.puzzles = model, processor, list(puzzles)
        self.modality = TASKS[puzzles[0].task]
        self.tokens: list[Tokens] = []
        with torch.inference_mode():
            for start in range(0, len(self.puzzles), BATCH):
                media = self.inputs("identity", start, BATCH).media
                for item, (features, _) in zip(media, model.encode(media), strict=True):
                    cues = item.cues() if item.cues is not None else None  # how loud it is
                    self.tokens.append((features, source_layout(model, item, cues)))

    def inputs(self, spec: str, start: int, count: int, like: str | None = None) -> OmniInputs:
        """Prompts of some puzzles, with answers and labels; see `ask`."""
        rows = []
        for index in range(start, min(start + count, len(self.puzzles))):
            rate = 0.0
            if like is not None:
                shape = self.tokens[index][1].shape
                rate = 1 - build(like).num_tokens(shape) / shape.num_tokens
            options = MediaOptions(reduction={self.modality: spec.format(rate=rate)})
            conversation = self.puzzles[index].conversation
            rows.append(self.processor(conversation, options=options, with_labels=True))
        return collate(rows, pad_token_id=self.processor.ids.pad, padding_side="right")

    @torch.inference_mode()
    def ask(
        self, spec: str, count: int, like: str | None = None
    ) -> tuple[list[float], list[float]]:
        """Ask the first puzzles.

        Args:
            spec: The reducer; with `like`, `{rate}` in it is filled in for each puzzle.
            count: How many puzzles.
            like: A reducer that leaves as many tokens.

        Returns:
            For each 1 if the greedy answer is right, word for word with its end, and the share of
            the small thing that lay in the cells of the tokens that are left.
        """
        right: list[float] = []
        seen: list[float] = []
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            inputs = self.inputs(spec, start, size, like)
            reduced = []
            for item, (features, layout) in zip(
                inputs.media, self.tokens[start : start + size], strict=True
            ):
                reduced.append(self.model.build_reducer(item)(features, layout))
            right += _greedy_is_right(self.model, inputs, reduced)
            for puzzle, (_, layout) in zip(self.puzzles[start:], reduced, strict=False):
                cells = puzzle.shares(layout.shape.grid)[layout.cells.numpy()]
                seen.append(float(cells.sum()))
        return right, seen


def _greedy_is_right(
    model: OmniModel, inputs: OmniInputs, reduced: Sequence[Tokens]
) -> list[float]:
    """Whether greedy decoding would give each true answer: every token is the likeliest."""
    embeddings, _ = model.place(inputs.input_ids, inputs.media, reduced, inputs.attention_mask)
    logits = model(inputs_embeds=embeddings, attention_mask=inputs.attention_mask).logits
    assert inputs.labels is not None
    targets = inputs.labels[:, 1:]
    hits = (logits[:, :-1].argmax(-1) == targets) | (targets == IGNORE_INDEX)
    return hits.all(dim=1).double().tolist()


def check_shortcut(model: OmniModel, processor: OmniProcessor) -> None:
    """The towers' kept output gives the scores of the whole model from the media themselves."""
    for task, modality in TASKS.items():
        asker = Asker(model, processor, [Puzzles((task,), 9, CHOICE_SEED)[i] for i in range(9)])
        inputs = asker.inputs("uniform(0.75)", 0, 9)
        with torch.inference_mode():
            logits = model(**inputs).logits[:, :-1]
        assert inputs.labels is not None
        targets = inputs.labels[:, 1:]
        hits = (logits.argmax(-1) == targets) | (targets == IGNORE_INDEX)
        if asker.ask("uniform(0.75)", 9)[0] != hits.all(dim=1).double().tolist():
            sys.exit(f"The shortcut for {modality} answers differently from the whole model.")


# ---- stages of training ----


def run_stages(work: Path, options: argparse.Namespace) -> tuple[OmniModel, OmniProcessor, Any]:
    """Train what is not in `work` yet.

    Returns:
        Model and processor after the last stage, and the seconds of each stage by name.
    """
    model, processor = build_toy()
    note = _printer()

    def sight(folder: Path) -> None:
        train_sight(model, processor, steps=options.sight_steps, report=note)

    def base(folder: Path) -> None:
        train_base(model, processor, steps=options.base_steps, report=note)

    def scorers(folder: Path) -> None:
        for task, modality in TASKS.items():
            settings = ScorerTraining(
                steps=options.scorer_steps,
                modalities=(modality,),
                rates=(0.0, MAX_RATE),
                batch_size=options.scorer_batch,
                learning_rate=options.scorer_learning_rate,
                distillation=options.distillation,
                seed=SCORER_SEED,
            )
            count = settings.steps * settings.batch_size
            conversations = Conversations(Puzzles((task,), count, SCORER_SEED))

            def report(step: int, loss: float, task: str = task) -> None:
                if step % 10 == 0:
                    note(step, f"{task}: loss {loss:.3f}")

            train_scorers(model, processor, conversations, settings, report=report)

    spent: dict[str, dict[str, float]] = {}
    for name, stage in {"sight": sight, "base": base, "scorers": scorers}.items():
        folder = work / name
        if (folder / "seconds.json").is_file():
            spent[name] = json.loads((folder / "seconds.json").read_text())
            if name == "scorers":
                for modality in TASKS.values():
                    model.add_token_scorer(modality, (0.0, MAX_RATE))
            model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
            continue
        begin = time.perf_counter(), time.process_time()
        stage(folder)
        spent[name] = _since(begin)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "model.pt")
        (folder / "seconds.json").write_text(json.dumps(spent[name]))
    return model, processor, spent


def _since(begin: tuple[float, float]) -> dict[str, float]:
    return {
        "wall_s": round(time.perf_counter() - begin[0], 1),
        "cpu_s": round(time.process_time() - begin[1], 1),
    }


def _printer() -> Callable[[int, str], None]:
    def note(step: int, text: str) -> None:
        print(f"  {step}: {text}", file=sys.stderr, flush=True)

    return note


# ---- questions ----


def measure_task(
    model: OmniModel, processor: OmniProcessor, task: str, options: argparse.Namespace
) -> tuple[dict[str, Any], Quality]:
    """Choose the rival, ask at 75 %, then along the curve; also the verdicts at 75 %."""
    modality = TASKS[task]

    def asker(count: int, seed: int) -> Asker:
        drawn = Puzzles((task,), count, seed)
        return Asker(model, processor, [drawn[i] for i in range(count)])

    choosing = asker(options.choice_cases, CHOICE_SEED)
    tried: dict[str, float] = {}
    for pattern in TRAINING_FREE[modality]:
        before, after = _counts(choosing, pattern.format(rate=RATE))
        if after <= (1 - RATE) * before + 1:  # a floor for each step may leave more than allowed
            right, _ = choosing.ask(pattern.format(rate=RATE), options.choice_cases)
            tried[pattern] = float(np.mean(right))
    rival = max(tried, key=lambda pattern: tried[pattern])

    testing = asker(options.cases, TEST_SEED)
    whole, _ = testing.ask("identity", options.cases)
    at_rate = ask_all(testing, rival, RATE, options.cases)
    quality = {name: right for name, (right, _) in at_rate.items()}
    curve = [{"rate": 0.0, **dict.fromkeys(quality, float(np.mean(whole[: options.curve_cases])))}]
    for rate in CURVE_RATES:
        found = ask_all(testing, rival, rate, options.curve_cases)
        curve.append(
            {"rate": rate, **{n: float(np.mean(right)) for n, (right, _) in found.items()}}
        )
    result = {
        "task": task,
        "tokens_before_and_after": _counts(testing, rival.format(rate=RATE)),
        "cases": options.cases,
        "rivals_on_choice_set": tried,
        "training_free": rival.format(rate=RATE),
        "without_reduction": mean_interval(whole)._asdict(),
        "quality": {name: mean_interval(right)._asdict() for name, right in quality.items()},
        "share_of_the_small_thing_in_kept_cells": {
            name: round(float(np.mean(seen)), 4) for name, (_, seen) in at_rate.items()
        },
        "order": compare(quality),
        "curve_cases": options.curve_cases,
        "curve": curve,
    }
    return result, quality


def compare(quality: Quality) -> list[dict[str, Any]]:
    """Each reducer against the one that should be next, case by case."""
    steps = [
        {"better": a, "worse": b, **paired_difference(quality[a], quality[b])._asdict()}
        for a, b in pairwise(ORDER)
    ]
    return [{**step, "holds": step["low"] > 0} for step in steps]


def ask_all(
    asker: Asker, rival: str, rate: float, count: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Ask under every reducer, all with as many tokens as the rival leaves."""
    like = rival.format(rate=rate)
    found = {
        "learned": asker.ask("learned({rate})", count, like),
        "training_free": asker.ask(like, count),
        "uniform": asker.ask("uniform({rate})", count, like),
    }
    blind = [f"random({{rate}}, seed={seed})" for seed in RANDOM_SEEDS]
    seeds = [asker.ask(spec, count, like) for spec in blind]
    means = [np.mean([seed[part] for seed in seeds], axis=0).tolist() for part in (0, 1)]
    found["random"] = (means[0], means[1])
    return found


def _counts(asker: Asker, spec: str) -> list[float]:
    """Tokens of a medium and what is left of them, on average."""
    shapes = [layout.shape for _, layout in asker.tokens]
    kept = [build(spec).num_tokens(shape) for shape in shapes]
    return [float(np.mean([shape.num_tokens for shape in shapes])), float(np.mean(kept))]


# ---- result ----

LINES = {
    "learned": "#0b5cad",
    "training_free": "#8a4b00",
    "uniform": "#3d7d3d",
    "random": "#999999",
}


def draw_curves(tasks: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw quality against rate, one panel a task."""
    width, height, margin = 420, 360, 50
    picture = Image.new("RGB", (width * len(tasks), height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for panel, task in enumerate(tasks):
        left = panel * width

        def place(rate: float, quality: float, left: int = left) -> tuple[float, float]:
            x = left + margin + rate / 0.9 * (width - 2 * margin)
            return x, height - margin - quality * (height - 2 * margin)

        for level in (0.0, 0.25, 0.5, 0.75, 1.0):
            draw.line([place(0, level), place(0.9, level)], fill="#dddddd")
            draw.text(
                (left + margin - 8, place(0, level)[1]), f"{100 * level:.0f}", "black", font, "rm"
            )
        for rate in (0.0, 0.25, 0.5, 0.75):
            x, y = place(rate, 0)
            draw.text((x, y + 8), f"{100 * rate:.0f} %", "black", font, "mt")
        title = f"{task['task']}: right answers (%) by share removed"
        draw.text((left + margin, 16), title, "black", font)
        at_rate = {name: value["mean"] for name, value in task["quality"].items()}
        points = sorted(
            [*task["curve"], {"rate": RATE, **at_rate}], key=lambda point: point["rate"]
        )
        for row, (name, colour) in enumerate(LINES.items()):
            line = [place(point["rate"], point[name]) for point in points]
            draw.line(line, fill=colour, width=2)
            for x, y in line:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
            label = task["training_free"] if name == "training_free" else name
            draw.text((left + margin + 8, height - margin - 78 + 18 * row), label, colour, font)
    picture.save(path)


def main() -> None:
    """Train, ask, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--out", type=Path, help="folder for the JSON line and the picture")
    parser.add_argument("--sight-steps", type=int, default=350)
    parser.add_argument("--base-steps", type=int, default=700)
    parser.add_argument("--scorer-steps", type=int, default=60, help="for each modality")
    parser.add_argument("--scorer-batch", type=int, default=16)
    parser.add_argument("--scorer-learning-rate", type=float, default=3e-3)
    parser.add_argument("--distillation", type=float, default=0.0, help="see finetune.scorer")
    parser.add_argument("--choice-cases", type=int, default=120)
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--curve-cases", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter(), time.process_time()
    model, processor, spent = run_stages(options.work, options)
    check_shortcut(model, processor)
    start = time.perf_counter(), time.process_time()
    measured = [measure_task(model, processor, task, options) for task in TASKS]
    tasks = [task for task, _ in measured]
    pooled = {name: [right for _, quality in measured for right in quality[name]] for name in ORDER}
    settings = {k: v for k, v in vars(options).items() if k not in ("work", "out")}
    trained = {unit: sum(stage[unit] for stage in spent.values()) for unit in ("wall_s", "cpu_s")}
    result = {
        "benchmark": "learned_reduction",
        "rate": RATE,
        "tasks": tasks,
        "all_tasks": {
            "quality": {name: mean_interval(right)._asdict() for name, right in pooled.items()},
            "order": compare(pooled),
        },
        "seconds": {**spent, "training": trained, "questions": _since(start), "now": _since(begin)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": settings,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }
    line = json.dumps(result)
    print(line)
    if options.out is not None:
        name = f"{datetime.datetime.now(tz=datetime.UTC).date()}-learned-reduction"
        (options.out / f"{name}.json").write_text(line + "\n")
        draw_curves(tasks, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
