"""What int8 and int4 weights cost in quality: answers of omni-tiny, and logits layer by layer.

    python benchmarks/quantization_quality.py tasks --data ../shared/data --limit 200
    python benchmarks/quantization_quality.py tasks --limit 40 --abilities line --choices int4
    python benchmarks/quantization_quality.py layers          # needs no data

`tasks` asks every question of `omni eval tiny` three times, of the float32 model, of int8 and of
int4, and prints for each task the mean loss in points with its 95 % interval. The same questions
are compared, so what varies between questions drops out. `layers` quantises one layer at a time,
reads sample prompts, and prints how far the scores of the next token move: root mean square over
that of the scores about their mean, and how often the most likely token stays the same.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import omni
from finetune.tiny.abilities import ABILITIES
from finetune.tiny.cases import Case, make_cases
from finetune.tiny.evaluate import BATCH, MAX_ANSWER_TOKENS
from finetune.tiny.score import score_answer
from finetune.tiny.turns import chat
from omni.assistant import Assistant
from omni.model import OmniModel
from omni.quantization import QuantizationConfig, quantize_weights
from omni.quantization.recipe import quantize_modules

CHOICES: dict[str, QuantizationConfig | None] = {
    "bfloat16": None,  # tasks only: what any harmless rounding does to the answers
    "int8": QuantizationConfig(bits=8),
    "int8_towers": QuantizationConfig(bits=8, towers=True),
    "int4": QuantizationConfig(bits=4),
    "int4_g32": QuantizationConfig(bits=4, group_size=32),
    "int4_towers": QuantizationConfig(bits=4, towers=True),
}
MEDIA = Path(__file__).parent.parent / "examples" / "media"
QUESTIONS = {
    "digit.png": "Which digit is written here?",
    "clip.mp4": "In which direction does the shape move?",
    "recording.wav": "Which word do you hear?",
    "ticket.pdf": "What is printed here?",
}


def quantized(assistant: Assistant, choices: QuantizationConfig | None) -> Assistant:
    """A copy of an assistant with quantised weights; None rounds the decoder's to bfloat16."""
    model = copy.deepcopy(assistant.model)
    if choices is None:
        for parameter in model.language_model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    else:
        quantize_weights(model, choices)
    return Assistant(model, assistant.processor, name=assistant.name)


def judge(assistant: Assistant, cases: Sequence[Case]) -> np.ndarray:
    """The score of each answer."""
    values: list[float] = []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        answers = assistant.chat_batch(
            [chat(case.sources, case.turns, answered=False) for case in batch],
            max_new_tokens=MAX_ANSWER_TOKENS,
            **batch[0].options,
        )
        values += [score_answer(c.turns[-1], a) for c, a in zip(batch, answers, strict=True)]
    return np.asarray(values)


def loss_in_points(
    before: np.ndarray, after: np.ndarray, weights: np.ndarray, *, is_error: bool
) -> dict[str, float]:
    """Mean loss of the same questions, in points, with a 95 % bootstrap interval."""
    difference = 100 * ((after - before) if is_error else (before - after))
    chosen = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    drawn = (difference * weights)[chosen].sum(1) / weights[chosen].sum(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    mean = (difference * weights).sum() / weights.sum()
    return {"loss": round(mean, 2), "low": round(low, 2), "high": round(high, 2)}


def tasks(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every task of omni-tiny."""
    abilities = options.abilities.split(",") if options.abilities else None
    cases: dict[str, list[Case]] = {}
    for seed in range(11, 11 + options.seeds):
        made = make_cases(options.data, options.limit, seed=seed, abilities=abilities)
        for ability, asked in made.items():
            cases.setdefault(ability, []).extend(asked)
    plain = omni.load()
    others = {name: quantized(plain, CHOICES[name]) for name in options.choices.split(",")}
    rows: dict[str, Any] = {}
    for ability, asked in cases.items():
        before = judge(plain, asked)
        is_error = ABILITIES[ability].is_error
        lengths = np.asarray([len(case.turns[-1].answer) for case in asked], dtype=float)
        weights = lengths if asked[0].turns[-1].task == "line" else np.ones(len(asked))
        mean = float((before * weights).sum() / weights.sum())
        rows[ability] = {"count": len(asked), "float32": round(100 * mean, 2)}
        for name, assistant in others.items():
            after = judge(assistant, asked)
            rows[ability][name] = loss_in_points(before, after, weights, is_error=is_error)
        print(ability, json.dumps(rows[ability]), flush=True, file=options.log)
    worst = {name: max(row[name]["loss"] for row in rows.values()) for name in others}
    return {"limit": options.limit, "worst_loss": worst, "tasks": rows}


@torch.no_grad()
def logits(model: OmniModel, prompts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Scores at every position of the prompts."""
    found = [
        model(input_ids=ids, inputs_embeds=embeds, logits_to_keep=0).logits[0]
        for ids, embeds in prompts
    ]
    return torch.cat(found)


def layers(options: argparse.Namespace) -> dict[str, Any]:
    """Quantise one layer at a time."""
    assistant = omni.load()
    model = assistant.model
    prompts = []
    for file, question in QUESTIONS.items():
        part = [{"type": "media", "media": str(MEDIA / file)}, {"type": "text", "text": question}]
        inputs = assistant.prepare([{"role": "user", "content": part}])
        with torch.no_grad():
            embeds, ids, _ = model.embed(inputs.input_ids, inputs.media)
        prompts.append((ids, embeds))
    decoder = model.language_model
    run = lambda m: torch.cat([m(inputs_embeds=e).logits[0] for _, e in prompts])  # noqa: E731
    with torch.no_grad():
        before = run(decoder)
    spread = (before - before.mean(-1, keepdim=True)).square().mean().sqrt()
    rows: dict[str, Any] = {}
    for name in options.choices.split(","):
        choices = CHOICES[name]
        parts = sorted(_mixers(copy.deepcopy(decoder), choices))
        rows[name] = {}
        for part in [*parts, "all"]:
            changed = copy.deepcopy(decoder)
            if part == "all":
                quantize_weights(changed, choices)
            elif part == "lm_head":
                head = torch.nn.ModuleDict({part: changed.lm_head})
                changed.lm_head = quantize_weights(head, choices)[part]
            else:
                quantize_weights(changed.get_submodule(part), choices, prefix=f"{part}.")
            with torch.no_grad():
                after = run(changed)
            moved = (after - before).square().mean().sqrt() / spread
            same = (after.argmax(-1) == before.argmax(-1)).float().mean()
            rows[name][part] = {"error": round(float(moved), 5), "same_top": round(float(same), 4)}
    return {"positions": len(before), "layers": rows}


def _mixers(decoder: torch.nn.Module, choices: QuantizationConfig) -> set[str]:
    """Names of the mixers, and of the head, that a recipe changes."""
    names = set()
    for name in quantize_modules(decoder, choices):
        layer = name.partition(".mixer.")
        names.add(f"{layer[0]}.mixer" if layer[1] else name)
    return {name for name in names if not name.endswith("embeddings")}


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("tasks", "layers"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=200, help="questions a task")
    parser.add_argument("--seeds", type=int, default=1, help="times the questions are drawn")
    parser.add_argument("--abilities", help="tasks, comma-separated [default: all]")
    parser.add_argument("--choices", default="int8,int4", help=f"of {', '.join(CHOICES)}")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.log = sys.stderr
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    result = {"benchmark": f"quantization-{options.what}"}
    result |= tasks(options) if options.what == "tasks" else layers(options)
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
