"""How long `omni` takes until it says something, on a warm disk, and what takes that time.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --repeats 9 --file examples/media/ticket.pdf

Prints one JSON line. Every figure is the median of `repeats` fresh processes, in turns, after one
that does not count: seconds until `omni --help` ends, until `omni ask` prints the first piece of
its answer on the embedded model and until it ends, and until a plain interpreter has imported
nothing, PyTorch, and transformers' `PreTrainedModel` as well. `stages` are the steps of `omni ask`
one after the other, without pauses of the garbage collector, as the program takes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from backbone_sides import machine

ROOT = Path(__file__).parent.parent
PROGRAM = "import sys; from omni.cli import main; sys.argv[0] = 'omni'; main()"
FLOORS = {
    "python": "print(1)",
    "torch": "import torch; print(1)",
    "torch_transformers": "import torch; from transformers import PreTrainedModel as _; print(1)",
}
STAGES = """
import gc, json, sys, time
gc.disable()  # as the program does it
start = time.perf_counter()
stages = {}
def done(name):
    global start
    now = time.perf_counter()
    stages[name], start = now - start, now
import omni.cli, finetune.cli, demo.cli
done("command line")
import torch
done("import torch")
from transformers import PreTrainedModel
done("import transformers")
import omni.assistant
done("import omni")
assistant = omni.load()
done("load omni-tiny")
next(iter(assistant.stream(*sys.argv[1:])))
done("read the file, first token")
print(json.dumps(stages), flush=True)
"""


def run(code: str, *arguments: str) -> tuple[float, float, bytes]:
    """Run Python code in a process of its own.

    Returns:
        Seconds until its first output and until its end, and the output.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read(1)
        first = time.perf_counter() - start
        output += process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{code!r} ended with {process.returncode}")
    return first, time.perf_counter() - start, output


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--file", default=str(ROOT / "examples/media/digit.png"))
    parser.add_argument("--question", default="Which digit is written here?")
    options = parser.parse_args()
    asked = (options.question, options.file)
    found: dict[str, list[float]] = {}
    stages: dict[str, list[float]] = {}
    for turn in range(options.repeats + 1):
        first, end, _ = run(PROGRAM, "ask", *asked)
        seconds = {"ask_first_piece": first, "ask": end, "help": run(PROGRAM, "--help")[1]}
        seconds |= {f"import_{name}": run(code)[0] for name, code in FLOORS.items()}
        parts = json.loads(run(STAGES, *asked)[2])
        if turn:
            for name, value in seconds.items():
                found.setdefault(name, []).append(value)
            for name, value in parts.items():
                stages.setdefault(name, []).append(value)
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    result = {
        "benchmark": "start-up",
        "file": Path(options.file).name,
        "seconds": medians,
        "stages": {name: round(statistics.median(values), 3) for name, values in stages.items()},
        "runs": {name: [round(value, 3) for value in values] for name, values in found.items()},
        "machine": machine(torch.get_num_threads()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
