"""Does a batch survive broken files and kill -9? 200 mixed files, five kills, memory.

    python benchmarks/batch_kills.py                       # 200 made files
    python benchmarks/batch_kills.py --data FOLDER --items 200

Takes pictures, clips, recordings and PDFs (made here, or those of a folder), damages a tenth of
them in different ways, and runs `omni batch` with one question a file: over 20 of the files, over
all, and over all with `kill -9` at random moments until it ends. Prints one JSON line: records,
errors by class, whether every sound file was answered and every damaged one is a typed error,
whether the bytes are equal and nothing was computed twice, and the peak memory of the runs (of
main and decoder process together, by sampling) with the ratio of 200 to 20 files.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw

COMMAND = [sys.executable, "-c", "from omni.cli import main; main()", "batch"]
OPTIONS = ["--question", "What is this?", "--max-new-tokens", "12", "--timeout", "60", "--json"]
SUFFIXES = {".png", ".jpg", ".jpeg", ".wav", ".flac", ".mp4", ".webm", ".avi", ".mkv", ".pdf"}
SAMPLE_RATE = 16_000  # Hz
PAGE = 2**10


def make_file(folder: Path, index: int) -> None:
    """A picture, clip, recording or PDF, by turns."""
    rng = np.random.default_rng(index)
    path = folder / f"{index:03}"
    kind = index % 4
    if kind == 0:
        height, width = (int(side) for side in rng.integers(32, 513, 2))
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height)).save(path.with_suffix(".png"))
    elif kind == 1:
        with av.open(path.with_suffix(".mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for step in range(int(rng.integers(8, 49))):
                pixels = np.full((120, 160, 3), 225, dtype=np.uint8)
                left = 4 * step % 130
                pixels[40:70, left : left + 30] = (215, 35, 35)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    elif kind == 2:
        times = np.arange(int(rng.uniform(0.5, 8) * SAMPLE_RATE)) / SAMPLE_RATE
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * times)
        soundfile.write(path.with_suffix(".wav"), wave, SAMPLE_RATE)
    else:
        pages = [Image.new("RGB", (300, 420), "white") for _ in range(int(rng.integers(1, 4)))]
        for number, page in enumerate(pages):
            ImageDraw.Draw(page).text((30, 40), f"PAGE {number + 1} OF {index}", fill="black")
        pages[0].save(path.with_suffix(".pdf"), save_all=True, append_images=pages[1:])


def copy_files(source: Path, folder: Path, count: int) -> None:
    """Files of a folder, of each suffix as many as there are of the rarest, chosen with a seed."""
    draw = random.Random(0)
    groups: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            groups.setdefault(path.suffix.lower(), []).append(path)
    for group in groups.values():
        draw.shuffle(group)
    index = 0
    while index < count:
        for group in groups.values():
            if group and index < count:
                path = group.pop()
                shutil.copy(path, folder / f"{index:03}{path.suffix.lower()}")
                index += 1


def _scramble(data: bytes) -> bytes:
    noise = np.random.default_rng(len(data)).integers(0, 256, len(data), dtype=np.uint8)
    return data[:16] + noise.tobytes()[16:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut to 12 bytes": lambda data: data[:12],
    "cut to a tenth": lambda data: data[: len(data) // 10],
    "scrambled": _scramble,
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"This is not the file that you are looking for.\n" * 20,
    "a web page": lambda data: b"<!DOCTYPE html><html><body>404</body></html>",
    "head lost": lambda data: data[64:],
}


def damage(folder: Path) -> dict[str, str]:
    """Damage every tenth file; names, and in which way."""
    ways = list(DAMAGES.items())
    damaged = {}
    for number, path in enumerate(sorted(folder.iterdir())[5::10]):
        way, change = ways[number % len(ways)]
        path.write_bytes(change(path.read_bytes()))
        damaged[path.name] = way
    return damaged


class Peak:
    """Most resident memory of a process and its children, sampled 20 times a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.most_kib, self.is_over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.is_over.wait(0.05):
            listed = subprocess.run(
                ["ps", "-o", "rss=", "--pid", str(self.pid), "--ppid", str(self.pid)],
                capture_output=True,
                check=False,
            )
            self.most_kib = max(self.most_kib, sum(map(int, listed.stdout.split())))

    def stop(self) -> float:
        """Peak in MiB."""
        self.is_over.set()
        self.thread.join()
        return self.most_kib / PAGE


def start(folder: Path, items: str, out: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, items, *OPTIONS, "--out", str(out)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def finish(folder: Path, items: str, out: Path) -> tuple[dict[str, Any], float]:
    """Run to the end; the summary, and the peak memory in MiB."""
    process = start(folder, items, out)
    peak = Peak(process.pid)
    printed, _ = process.communicate()
    return json.loads(printed), peak.stop()


def killed(folder: Path, out: Path, kills: int, tasks: int, seed: int) -> list[int]:
    """Kill runs when the journal has reached lengths drawn at random; the lengths then."""
    journal = out.with_name(f"{out.stem}.journal.jsonl")
    draw = random.Random(seed)
    marks = sorted(draw.sample(range(1, tasks - 5), kills))
    lengths = []
    for mark in marks:
        process = start(folder, "items", out)
        while not journal.exists() or journal.read_bytes().count(b"\n") < mark:
            if process.poll() is not None:
                raise RuntimeError(f"The run ended before it had {mark} results.")
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            raise RuntimeError("The run had ended before it was killed.")
        lengths.append(journal.read_bytes().count(b"\n"))
    return lengths


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of media files")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("items", "few"):
            (folder / name).mkdir()
        if options.data is None:
            for index in range(options.items):
                make_file(folder / "items", index)
        else:
            copy_files(options.data, folder / "items", options.items)
        damaged = damage(folder / "items")
        for path in sorted((folder / "items").iterdir())[:20]:
            shutil.copy(path, folder / "few")

        _, few_mib = finish(folder, "few", folder / "few.jsonl")
        begin = time.perf_counter()
        summary, peak_mib = finish(folder, "items", folder / "whole.jsonl")
        seconds = time.perf_counter() - begin
        out = folder / "killed.jsonl"
        lengths = killed(folder, out, options.kills, summary["records"], options.seed)
        last, _ = finish(folder, "items", out)

        records = [json.loads(line) for line in (folder / "whole.jsonl").open()]
        failed = {Path(r["item"]).name: r["error"] for r in records if r["error"] is not None}
        journal = (folder / "killed.journal.jsonl").read_bytes().splitlines()
        keys = [json.loads(line)["key"] for line in journal]
        equal = out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    kinds = Counter(Path(record["item"]).suffix for record in records)
    print(
        json.dumps(
            {
                "benchmark": "batch_kills",
                "items": dict(sorted(kinds.items())),
                "records": len(records),
                "damaged": len(damaged),
                "errors": dict(Counter(error["class"] for error in failed.values())),
                "sound_but_failed": {n: e for n, e in failed.items() if n not in damaged},
                "damaged_but_answered": {
                    name: way for name, way in damaged.items() if name not in failed
                },
                "kills_at": lengths,
                "computed_after_the_last_kill": last["computed"],
                "bytes_equal": equal,
                "nothing_twice": len(keys) == len(set(keys)),
                "peak_mib": {"20": round(few_mib), str(len(records)): round(peak_mib)},
                "memory_ratio": round(peak_mib / few_mib, 3),
                "seconds": round(seconds, 1),
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
