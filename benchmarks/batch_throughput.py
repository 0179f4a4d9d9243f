"""How fast a batch with several questions a file is, against loops that ask one at a time.

    python benchmarks/batch_throughput.py                       # 100 made files, 5 questions
    python benchmarks/batch_throughput.py --data FOLDER --items 100

Four sides answer the same questions about the same files with the same weights, greedily:

- `omni.batch`, with its results in a file;
- the same with one worker, that is, one group of files at a time;
- a loop that calls `assistant.ask` for each file and question;
- a loop that calls `generate` of transformers for each, on its own model class with our weights,
  fed by our processor (its video path fails, hence pictures and recordings only).

Each has answered two files before; the process that decodes is started anew for each batch, and
that is counted. With `--turns 5` they take turns, a part of the files at a time, so that a busy
machine slows all of them; a batch of fewer files groups them less well. Prints one JSON line:
seconds of each side, the ratios, how many answers are equal, and as `limit` what sharing alone
would allow: tokens of all prompts over tokens that a batch reads, media once.
"""

import argparse
import copy
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

import omni

QUESTIONS = (
    "What is this?",
    "Which digit is it?",
    "Which colour does it have?",
    "What does it say?",
    "Which word is spoken?",
)
SAMPLE_RATE = 16_000  # Hz
MAX_NEW_TOKENS = 16
SUFFIXES = {".png", ".jpg", ".jpeg", ".wav", ".flac"}


def make_files(folder: Path, count: int) -> list[Path]:
    """Pictures of 64 to 512 pixels and recordings of 1 to 8 seconds, half and half."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        if index % 2:
            seconds = float(rng.uniform(1, 8))
            times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
            wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * times)
            paths.append(folder / f"{index:03}.wav")
            soundfile.write(paths[-1], wave, SAMPLE_RATE)
        else:
            height, width = rng.integers(64, 513, 2)
            blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            paths.append(folder / f"{index:03}.png")
            Image.fromarray(blocks).resize((int(width), int(height))).save(paths[-1])
    return paths


def find_files(folder: Path, count: int) -> list[Path]:
    """Pictures and recordings of a folder, chosen with a fixed seed."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return random.Random(0).sample(found, count)


class Batch:
    """`omni.batch` over all files and questions."""

    def __init__(self, assistant: Any, folder: Path, workers: int | None = None) -> None:
        self.assistant, self.folder, self.workers, self.calls = assistant, folder, workers, 0

    def __call__(self, paths: Sequence[Path]) -> list[str]:
        """Answers of the next run."""
        self.calls += 1
        assistant = copy.copy(self.assistant)  # which has no process that decodes yet
        records = omni.batch(
            paths,
            QUESTIONS,
            model=assistant,
            out=self.folder / f"{self.workers}-{self.calls}.jsonl",
            workers=self.workers,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        return [record["answer"] for record in records]


def ask_each(assistant: Any, paths: Sequence[Path]) -> list[str]:
    """A plain loop."""
    return [
        assistant.ask(question, path, max_new_tokens=MAX_NEW_TOKENS).text
        for path in paths
        for question in QUESTIONS
    ]


def generate_each(assistant: Any, theirs: Any, paths: Sequence[Path]) -> list[str]:
    """A plain loop over `generate` of transformers."""
    answers = []
    tokenizer = assistant.processor.tokenizer
    for path in paths:
        for question in QUESTIONS:
            content = [{"type": "media", "media": path}, {"type": "text", "text": question}]
            inputs = assistant.prepare([{"role": "user", "content": content}])
            with torch.no_grad():
                ids = theirs.generate(
                    input_ids=inputs.input_ids,
                    attention_mask=inputs.attention_mask.long(),
                    **their_media(inputs.media),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=sorted(assistant.vocabulary.stop),
                    pad_token_id=assistant.processor.ids.pad,
                    suppress_tokens=list(assistant.vocabulary.banned),
                )
            new = ids[0, inputs.input_ids.shape[1] :]
            answers.append(tokenizer.decode(new, skip_special_tokens=True).lstrip("\n"))
    return answers


def their_media(items: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Encoder inputs under transformers' names."""
    [item] = items
    [window] = item.windows
    if item.modality == "image":
        return {"pixel_values": window.rows, "image_grid_hw": torch.tensor([item.grid[1:]])}
    # Of a multiple of eight frames it counts one token more than the encoder gives: one frame less.
    num_valid = window.num_valid - (window.num_valid % 8 == 0)
    mask = torch.arange(len(window.rows)) < num_valid
    return {"input_features": window.rows[None], "input_features_mask": mask[None]}


def their_model(model: Any) -> Any:
    """The class of transformers with our weights."""
    config = model.config.to_dict()
    names = ("text_config", "vision_config", "audio_config")
    parts = {name: config.pop(name) for name in names}
    theirs = NemotronH_Omni_Reasoning_V3(
        NemotronH_Omni_Reasoning_V3_Config(**parts, **config)
    ).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs.to(model.dtype)


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures and recordings")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--turns", type=int, default=1, help="parts in which the sides take turns")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    assistant = omni.load()
    theirs = their_model(assistant.model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.data is None:
            paths = make_files(folder, options.items)
        else:
            paths = find_files(options.data, options.items)
        sides: dict[str, Callable[[Sequence[Path]], list[str]]] = {
            "batch": Batch(assistant, folder),
            "one worker": Batch(assistant, folder, workers=1),
            "ask": lambda part: ask_each(assistant, part),
            "transformers": lambda part: generate_each(assistant, theirs, part),
        }
        for run in sides.values():
            run(paths[:2])
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        answers: dict[str, list[str]] = {name: [] for name in sides}
        for turn in range(options.turns):
            part = paths[turn :: options.turns]
            for name, run in sides.items():
                begin = time.perf_counter()
                answers[name] += run(part)
                seconds[name].append(time.perf_counter() - begin)

        prompts, read = 0, 0
        for path in paths:
            ledger = assistant.plan(QUESTIONS[0], path)
            media = ledger.prompt_tokens - ledger.text_tokens
            prompts += len(QUESTIONS) * ledger.prompt_tokens
            read += len(QUESTIONS) * ledger.text_tokens + media
    ratios = {
        name: statistics.median(
            slow / fast for slow, fast in zip(seconds[name], seconds["batch"], strict=True)
        )
        for name in ("one worker", "ask", "transformers")
    }
    equal = {
        name: sum(a == b for a, b in zip(answers[name], answers["batch"], strict=True))
        for name in ("one worker", "ask", "transformers")
    }
    print(
        json.dumps(
            {
                "benchmark": "batch_throughput",
                "items": len(paths),
                "questions": len(QUESTIONS),
                "answers_per_s": round(len(answers["batch"]) / sum(seconds["batch"]), 2),
                "seconds": {name: round(sum(found), 1) for name, found in seconds.items()},
                "ratio": {name: round(ratio, 2) for name, ratio in ratios.items()},
                "equal_answers": {**equal, "of": len(answers["batch"])},
                "limit": round(prompts / read, 2),
                "threads": options.threads,
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
