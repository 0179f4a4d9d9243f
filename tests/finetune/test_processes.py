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

from tests.finetune.test_loop import SETTINGS, conversation, losses, missed, weights
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
@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_two_processes_learn_what_one_learns(data, tmp_path, guidance):
    settings = replace(
        SETTINGS, samples_per_step=4, max_bad_share=0.5, balance_rate=0.01, guidance=guidance
    )
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
    assert missed(tmp_path / "two") == pytest.approx(missed(tmp_path / "one"), rel=1e-4)
    assert bool(missed(tmp_path / "one")) == bool(guidance)
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3)
    bad = [(tmp_path / n / "bad_rows.jsonl").read_text() for n in ("one", "two")]
    assert bad[0] == bad[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(data, tmp_path):
    settings = replace(SETTINGS, max_steps=80, save_steps=3, max_bad_share=0.5, lora_dropout=0.1)
    finish(start(data, tmp_path / "whole", settings))
    rng, out = random.Random(0), tmp_path / "cut"
    for step in sorted(rng.sample(range(1, 70), 10)):
        process = start(data, out, settings)
        while steps_done(out) < step:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))  # anywhere in the next step or two, or while saving
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert steps_done(out) < settings.max_steps
    finish(start(data, out, settings))
    assert weights(out) == weights(tmp_path / "whole")
    assert losses(out) == losses(tmp_path / "whole")


def steps_done(out):
    """Steps that the figures of a run speak of, which may be more than its newest state."""
    file = out / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0
