"""The working memory that `omni plan` estimates beside what a request really takes.

    python benchmarks/working_memory.py               # with the embedded checkpoint
    python benchmarks/working_memory.py --model DIR   # with another one

Asks about media of several kinds and sizes, each in a process of its own that has answered a small
question before, and prints one JSON line: for each request the estimate (`ledger.memory_bytes`) and
by how much the process grew at its peak, both in MiB, and the estimate over the growth. An estimate
that is to keep a request within ``--max-memory`` has to be above 1. Linux only.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

SAMPLE_RATE = 16_000  # Hz
POLL_S = 0.002
RNG = np.random.default_rng(0)


def picture(side: int) -> Image.Image:
    """Noise, so that nothing about it is easy."""
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


def video(num_frames: int) -> Any:
    """Noise at two frames a second."""
    from omni import load_media

    frames = RNG.integers(0, 256, (num_frames, 240, 320, 3), dtype=np.uint8)
    return load_media(frames, fps=2.0)


def recording(seconds: int) -> Any:
    """Noise."""
    from omni import load_media

    samples = RNG.uniform(-0.3, 0.3, seconds * SAMPLE_RATE).astype(np.float32)
    return load_media(samples, sampling_rate=SAMPLE_RATE)


REQUESTS = {
    "picture of 2000 x 2000": lambda: [picture(2000)],
    "8 pictures of 800 x 800": lambda: [picture(800) for _ in range(8)],
    "video of 16 frames": lambda: [video(16)],
    "video of 128 frames": lambda: [video(128)],
    "recording of 30 s": lambda: [recording(30)],
    "recording of 20 min": lambda: [recording(20 * 60)],
    "picture, video, recording": lambda: [picture(1200), video(64), recording(300)],
}


class PeakMemory:
    """By how much this process grows while the block runs, in bytes."""

    def __enter__(self) -> "PeakMemory":
        """Note where it starts and watch in a thread."""
        from omni.memory import release_heap

        release_heap()
        self.before, self.peak, self.ended = _resident_bytes(), 0, False
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, _resident_bytes() - self.before)
            time.sleep(POLL_S)

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.ended = True
        self.thread.join()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, model: str | None) -> dict[str, Any]:
    """Plan and ask one request in this process."""
    import omni

    assistant = omni.load(model)
    options = {"max_new_tokens": 4, "num_frames": 128}
    # Once before: what libraries set up on first use is not the request's.
    assistant.ask("What is this?", picture(32), video(2), recording(1), **options)
    media = REQUESTS[name]()
    plan = assistant.plan("What is this?", *media, **options)
    with PeakMemory() as memory:
        assistant.ask("What is this?", *media, **options)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "estimated_mib": round(plan.memory_bytes / 2**20, 1),
        "measured_mib": round(memory.peak / 2**20, 1),
        "ratio": round(plan.memory_bytes / max(memory.peak, 1), 2),
    }


def main() -> None:
    """Measure every request in a child process and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint directory or hub id (default: embedded)")
    parser.add_argument("--child", metavar="REQUEST", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.child, options.model)))
        return
    results = {}
    for name in REQUESTS:
        command = [sys.executable, __file__, "--child", name]
        command += [] if options.model is None else ["--model", options.model]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode != 0:
            sys.exit(f"Asking about {name} failed:\n{child.stderr}")
        results[name] = json.loads(child.stdout.splitlines()[-1])
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "working_memory", "requests": results, "machine": machine}))


if __name__ == "__main__":
    main()
