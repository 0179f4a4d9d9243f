"""Run the same work by our decoder and by transformers' in processes of their own, in turns.

Shared by `backbone.py` and `quantization.py`. The weights are made once, before the processes
fork, so all share them.
"""

import argparse
import gc
import multiprocessing as mp
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.allocator import keep_freed_memory
from omni.backbone.products import linear

Work = Callable[[], float | None]
"""Does the work once; returns seconds if it times itself, else it is timed."""

DECODE_PROMPT, DECODE_STEPS = 64, 16


@dataclass
class Side:
    """One implementation under one allocator setting, in its own process."""

    name: str
    build: Callable[[], Work]
    keep_memory: bool
    threads: int
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection, theirs = mp.Pipe()
        self.process = mp.get_context("fork").Process(
            target=self._serve, args=(theirs,), daemon=True
        )
        self.process.start()
        theirs.close()

    def _serve(self, connection: Connection) -> None:
        if self.keep_memory:
            keep_freed_memory()
        torch.set_num_threads(self.threads)
        work = self.build()
        while (command := connection.recv()) != "end":
            if command == "run":
                start = time.perf_counter()
                own = work()
                connection.send(own if own is not None else time.perf_counter() - start)
            elif command == "peak":
                connection.send(peak_extra_bytes(work))
            else:
                connection.send(LIMITS[command]())

    def ask(self, command: str) -> float:
        """Let the process do something and return its number."""
        self.connection.send(command)
        return self.connection.recv()

    def close(self) -> None:
        """End the process."""
        self.connection.send("end")
        self.process.join()


def alternate(
    sides: list[Side], options: argparse.Namespace, limits: tuple[str, ...] = ()
) -> dict[str, float]:
    """Run all sides in turns; return medians of the limits, measured between the rounds."""
    for side in sides:
        for _ in range(options.warmup):
            side.ask("run")
    found: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(options.repeats):
        for side in sides:
            side.seconds.append(side.ask("run"))
        for name in limits:
            found[name].append(sides[0].ask(name))
    return {name: statistics.median(values) for name, values in found.items()}


def decode_ours(model: Any, prompt: Tensor, *, native: bool = True) -> Callable[[], float]:
    """Work of our decoder: tokens after a prompt, one at a time; seconds are those of a token.

    Args:
        model: The decoder.
        prompt: Ids before the first token that counts.
        native: Steps by the library, which must be there, or by PyTorch.
    """
    if model.compile_step(is_wanted=native) != native:
        raise SystemExit("Steps are not native, so nothing is measured.")

    @torch.no_grad()
    def work() -> float:
        cache = model.new_cache(DECODE_PROMPT + DECODE_STEPS)
        logits = model(prompt, cache=cache, logits_to_keep=1).logits
        start = time.perf_counter()
        for _ in range(DECODE_STEPS):
            logits = model(logits.argmax(-1), cache=cache, logits_to_keep=1).logits
        return (time.perf_counter() - start) / DECODE_STEPS

    return work


def decode_theirs(model: Any, prompt: Tensor) -> Callable[[], float]:
    """The same work of transformers' decoder."""

    @torch.no_grad()
    def work() -> float:
        output = model(prompt, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(DECODE_STEPS):
            output = model(
                output.logits.argmax(-1),
                cache=output.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return (time.perf_counter() - start) / DECODE_STEPS

    return work


def ratio(theirs: Side, ours: Side) -> float:
    """Median over the rounds of their seconds over ours."""
    return statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))


def measure_gemm() -> float:
    """FLOP/s of a float32 matrix product of the size of a projection, by the faster library."""
    x, weight = torch.randn(2048, 2688), torch.randn(8192, 2688)
    return 2 * x.numel() * len(weight) / fastest(x, weight)


def measure_bandwidth() -> float:
    """Bytes/s at which a float32 matrix-vector product reads 512 MiB, by the faster library."""
    x, weight = torch.ones(1, 4096), torch.ones(32768, 4096)
    return 4 * weight.numel() / fastest(x, weight)


@torch.no_grad()
def fastest(x: Tensor, weight: Tensor) -> float:
    """Seconds of the fastest of several products, by PyTorch's choice of a library and by ours."""
    seconds = []
    for _ in range(3):
        for multiply in (F.linear, linear):
            start = time.perf_counter()
            multiply(x, weight)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


LIMITS: dict[str, Callable[[], float]] = {"gemm": measure_gemm, "bandwidth": measure_bandwidth}


def peak_extra_bytes(work: Work) -> float:
    """Growth of the resident memory while the work is done, at its peak."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM to the present size
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def machine(threads: int) -> dict[str, Any]:
    """Describe where the numbers come from."""
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "libc": " ".join(platform.libc_ver()),
    }


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
