"""Several processes learn what one does, and a process that dies leaves nothing half done."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.state import FOLDER
from tests.finetune.test_loop import SETTINGS, conversation, losses, weights
from tests.support.rows import write_jsonl, write_media

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    kinds = [("image", "a.png"), ("audio", "s.wav"), (None, "")]
    rows = [conversation(*kinds[i % 3], i) for i in range(10)]
    rows[4] = {"messages": []}
    return write_jsonl(folder / "data.jsonl", rows)


def start(data, out, settings, **environment):
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(settings.to_dict()))
    command = [sys.executable, "-m", "tests.finetune.run_process", str(data), str(out), str(file)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data, tmp_path):
    settings = replace(SETTINGS, samples_per_step=4, max_bad_share=0.5, balance_rate=0.01)
    finish(start(data, tmp_path / "one", settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    together |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        start(data, tmp_path / "two", settings, RANK=str(i), LOCAL_RANK=str(i), **together)
        for i in range(2)
    ]
    for process in processes:
        finish(process)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3)
    bad = [(tmp_path / n / "bad_rows.jsonl").read_text() for n in ("one", "two")]
    assert bad[0] == bad[1]


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(data, tmp_path):
    settings = replace(SETTINGS, max_steps=60, max_bad_share=0.5, lora_dropout=0.1)
    started = time.monotonic()
    finish(start(data, tmp_path / "whole", settings))
    whole_s = time.monotonic() - started
    rng, killed = random.Random(0), 0
    out = tmp_path / "cut"
    for _ in range(40):
        process = start(data, out, settings)
        until = time.monotonic() + whole_s * rng.uniform(0.4, 1.0)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        if killed == 10 or process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        if len(list((out / FOLDER).glob("step-*"))) and killed < 10:
            _forget_progress(out, rng)
    if process.poll() is None:
        finish(process)
    assert killed == 10
    assert weights(out) == weights(tmp_path / "whole")
    assert losses(out) == losses(tmp_path / "whole")


def _forget_progress(out, rng):
    """Sometimes lose the newest state, so that ten kills fall into all parts of the run."""
    newest = sorted((out / FOLDER).glob("step-*"))
    if len(newest) > 1 and rng.random() < 0.5:
        for path in sorted(newest[-1].iterdir()):
            path.unlink()
        newest[-1].rmdir()
