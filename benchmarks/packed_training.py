"""Target tokens a second in training: our loop with packed rows against transformers' Trainer.

    python benchmarks/packed_training.py                 # omni-tiny, 12 steps of 8 samples
    python benchmarks/packed_training.py --steps 20 --repeats 5

Makes one mixed data set (text, pictures, recordings of 1 to 20 s, clips of 1 to 4 s; answers of 3
to 120 words) and trains omni-tiny on it with the same adapters, samples and optimiser twice: with
our loop, and with `transformers.Trainer` whose batches are padded to the longest sample. Each run
is a process of its own; runs take turns. Prints one JSON line: median target tokens a second of the
steps after the first two, their ratio, peak memory of both, and the limit that padding alone sets:
padded over real tokens of the decoder.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from finetune.tiny.subjects import encode_clip

SKIPPED = 2  # first steps, in which caches fill
SAMPLE_RATE = 16_000  # Hz
CLIP_FPS = 4
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "red", "green", "left"]


def write_data(folder: Path, rows: int) -> Path:
    """Write a mixed data set: every fourth row text, picture, recording, clip."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(rows):
        kind = ("text", "image", "audio", "video")[i % 4]
        part: list[dict[str, Any]] = []
        if kind == "image":
            size = int(rng.choice([64, 128, 256]))
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            part = [{"type": "image", "image": f"{i}.png"}]
        elif kind == "audio":
            seconds = float(np.exp(rng.uniform(0, np.log(20))))
            times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
            soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 300 * times), SAMPLE_RATE)
            part = [{"type": "audio", "audio": f"{i}.wav"}]
        elif kind == "video":
            frames = rng.integers(0, 256, (int(rng.choice([4, 8, 16])), 64, 64, 3), dtype=np.uint8)
            (folder / f"{i}.mp4").write_bytes(encode_clip(list(frames), CLIP_FPS))
            part = [{"type": "video", "video": f"{i}.mp4"}]
        # Most answers are short and a few long, as in real conversations.
        length = int(3 * np.exp(rng.exponential(1.2)))
        answer = " ".join(rng.choice(WORDS, size=min(length, 120)))
        question = [*part, {"type": "text", "text": "What is in it?"}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def settings_for(steps: int, samples: int) -> Any:
    """The same run for both sides."""
    from finetune.settings import FinetuneSettings

    return FinetuneSettings(
        preset="lora-all",
        max_steps=steps,
        samples_per_step=samples,
        eval_share=0,
        save_steps=10**6,
        metric="none",
    )


def run_ours(data: Path, steps: int, samples: int) -> dict[str, float]:
    """Our loop."""
    import omni
    from finetune.data import open_dataset
    from finetune.loop import finetune

    assistant = omni.load()
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as out:
        finetune(
            assistant.model,
            assistant.processor,
            open_dataset(data),
            settings_for(steps, samples),
            Path(out),
            base="omni-tiny",
            report=rows.append,
        )
    counted = rows[SKIPPED:]
    seconds = sum(row["seconds"] for row in counted)
    return {
        "targets_per_s": sum(row["target_tokens"] for row in counted) / seconds,
        "decoder_tokens": sum(row["tokens"] for row in counted),
        "seconds": seconds,
    }


def run_trainer(data: Path, steps: int, samples: int) -> dict[str, float]:
    """The Trainer of transformers with padded batches of the same samples."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    import omni
    from finetune.batches import indices_of_step
    from finetune.data import Sample, num_targets, open_dataset
    from finetune.data.encode import encode_sample
    from finetune.trainable import make_trainable
    from omni.inputs import collate

    assistant = omni.load()
    settings = settings_for(steps, samples)
    wrapped, _, _ = make_trainable(assistant.model, settings)
    dataset = open_dataset(data)
    order = [i for step in range(steps) for i in indices_of_step(step, len(dataset), settings)]

    class Ordered(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, index: int) -> Any:
            sample = dataset[order[index]]
            assert isinstance(sample, Sample)
            return encode_sample(sample, assistant.processor)

    seen: list[tuple[int, int]] = []

    def collator(rows: list[Any]) -> dict[str, Any]:
        batch = collate(rows, pad_token_id=assistant.processor.ids.pad, padding_side="right")
        seen.append((sum(map(num_targets, rows)), batch.input_ids.numel()))
        return dict(**batch)

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(Ordered())

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=samples,
            learning_rate=settings.learning_rate,
            optim="adamw_torch",
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        InOrder(
            model=wrapped,
            args=arguments,
            train_dataset=Ordered(),
            data_collator=collator,
            callbacks=[Clock()],
        ).train()
    counted = seen[SKIPPED:steps]
    seconds = marks[-1] - marks[SKIPPED - 1]
    return {
        "targets_per_s": sum(targets for targets, _ in counted) / seconds,
        "decoder_tokens": sum(tokens for _, tokens in counted),
        "seconds": seconds,
    }


def measure(side: str, data: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--child", side, str(data)]
    command += ["--steps", str(options.steps), "--samples", str(options.samples)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        sys.exit(f"{side} failed:\n{child.stderr}")
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both sides in turns and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8, help="samples in a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        side, data = options.child
        run = {"packed": run_ours, "trainer": run_trainer}[side]
        found = run(Path(data), options.steps, options.samples)
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
        print(json.dumps({**found, "peak_mib": round(peak)}))
        return
    runs: dict[str, list[dict[str, float]]] = {"packed": [], "trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        path = write_data(Path(folder), options.steps * options.samples)
        for _ in range(options.repeats):
            for side, measured in runs.items():
                measured.append(measure(side, path, options))
    median = {
        side: {key: round(statistics.median(r[key] for r in found), 2) for key in found[0]}
        for side, found in runs.items()
    }
    ratio = median["packed"]["targets_per_s"] / median["trainer"]["targets_per_s"]
    padding = median["trainer"]["decoder_tokens"] / median["packed"]["decoder_tokens"]
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    print(
        json.dumps(
            {
                "benchmark": "packed_training",
                "ratio": round(ratio, 3),
                "limit": round(padding, 3),
                **median,
                "runs": runs,
                "machine": machine,
            }
        )
    )


if __name__ == "__main__":
    main()
