"""Peak memory of reducing a two-hour video as a stream, against its first ten minutes and at once.

    python benchmarks/streamed_reduction.py                       # evs(0.9), 256 channels
    python benchmarks/streamed_reduction.py --reduce "evs(0.9, floor=8)" --dim 512 --skip-at-once

Makes the features of a video (one frame a second, two frames a step, 252 tokens a step, most of
them changing a little, some a lot) window by window, as the tower would give them, and pushes them
through a reducer. Each run is a process of its own. Prints one JSON line: for every run the most
feature rows held, how many are kept, what the process grew by at its peak in MiB, and the seconds
of processor time.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from token_reduction import TokenLayout, build

PLACES = (12, 21)  # tokens of a step, as of a 16:9 video
SECONDS_PER_STEP = 2
STEPS_PER_WINDOW = 32
RUNS_S = {"ten_minutes": 600, "two_hours": 7200}


def windows(num_steps: int, dim: int) -> Iterator[Tensor]:
    """Features of a scene that drifts, with a twentieth of the places new in every step."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(4 * PLACES[0] * PLACES[1], dim, generator=generator)  # drawing is slow
    scene = pool[: PLACES[0] * PLACES[1]]
    for start in range(0, num_steps, STEPS_PER_WINDOW):
        steps = []
        for _ in range(min(STEPS_PER_WINDOW, num_steps - start)):
            is_new = torch.rand(len(scene), 1, generator=generator) < 0.05
            first = int(torch.randint(len(pool) - len(scene), (1,), generator=generator))
            drift = pool[first : first + len(scene)]
            scene = torch.where(is_new, drift, scene + 0.05 * drift)
            steps.append(scene)
        yield torch.cat(steps)


def peak_mib() -> float:
    """Most resident memory of this process so far; kilobytes on Linux, bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reduce(spec: str, duration_s: int, dim: int, *, at_once: bool) -> dict[str, Any]:
    """Reduce one synthetic video in this process."""
    num_steps = duration_s // SECONDS_PER_STEP
    reducer = build(spec)
    for rows in windows(1, dim):  # so that torch's own buffers are there before the baseline
        reducer(rows, TokenLayout.full("video", (1, *PLACES)))
    before, start = peak_mib(), time.process_time()
    layout = TokenLayout.full("video", (num_steps, *PLACES))
    of_layout = peak_mib() - before
    most_held, seconds = 0, 0.0
    if at_once:
        rows = torch.cat(list(windows(num_steps, dim)))
        most_held, start = len(rows), time.process_time()
        kept, _ = reducer(rows, layout)
        seconds = time.process_time() - start
    else:
        stream = reducer.stream(layout)
        for piece in windows(num_steps, dim):
            start = time.process_time()
            stream.push(piece)
            seconds += time.process_time() - start
            most_held = max(most_held, stream.num_held)
        start = time.process_time()
        kept, _ = stream.finish()
        seconds += time.process_time() - start
    return {
        "rows_in": layout.shape.num_tokens,
        "rows_kept": len(kept),
        "most_rows_held": most_held,
        "kept_mib": round(kept.numel() * kept.element_size() / 2**20, 1),
        "layout_mib": round(of_layout, 1),
        "peak_growth_mib": round(peak_mib() - before, 1),
        "reduce_cpu_s": round(seconds, 3),
    }


def main() -> None:
    """Run every case in a child process and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reduce", default="evs(0.9)", help="reducer to measure")
    parser.add_argument("--dim", type=int, default=256, help="channels of a token")
    parser.add_argument("--skip-at-once", action="store_true", help="leave out the large run")
    parser.add_argument("--child", nargs=2, metavar=("SECONDS", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        seconds, how = options.child
        found = reduce(options.reduce, int(seconds), options.dim, at_once=how == "at_once")
        print(json.dumps(found))
        return
    cases = {name: (duration_s, "streamed") for name, duration_s in RUNS_S.items()}
    if not options.skip_at_once:
        cases["two_hours_at_once"] = (RUNS_S["two_hours"], "at_once")
    result = {}
    for name, (duration_s, how) in cases.items():
        command = [sys.executable, __file__, "--reduce", options.reduce, "--dim", str(options.dim)]
        child = subprocess.run(
            [*command, "--child", str(duration_s), how], capture_output=True, text=True
        )
        if child.returncode != 0:
            sys.exit(f"The run {name} failed:\n{child.stderr}")
        result[name] = json.loads(child.stdout.splitlines()[-1])
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "streamed_reduction", **result, "machine": machine}))


if __name__ == "__main__":
    main()
