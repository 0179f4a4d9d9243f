"""The command with the embedded model, killed with -9 again and again: the same bytes at last."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import media as samples
from tests.support import tiny_omni

EXAMPLES = Path(__file__).parents[3] / "examples" / "media"
COMMAND = [sys.executable, "-c", "from omni.cli import main; main()", "batch", "items"]
OPTIONS = ["--question", "What is this?", "--question", "Which digit?", "--max-new-tokens", "12"]
KILLS = 3


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*COMMAND, *OPTIONS, "--batch-size", "2", "--out", out, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def finish(folder: Path, out: str) -> dict:
    process = start(folder, out)
    printed, _ = process.communicate()
    assert process.returncode == 1  # some items are broken
    return json.loads(printed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_resumed_ends_with_the_bytes_of_an_uninterrupted_run(tmp_path):
    items = tmp_path / "items"
    items.mkdir()
    for path in EXAMPLES.iterdir():
        if path.suffix != ".md":
            shutil.copy(path, items)
    for number in range(12):
        samples.write_image(items / f"{number}.png", tiny_omni.picture(40, 40 + number, number))
    data = (EXAMPLES / "clip.mp4").read_bytes()
    (items / "broken.mp4").write_bytes(data[: len(data) // 3])  # 10 % of 20
    (items / "empty.wav").write_bytes(b"")

    summary = finish(tmp_path, "whole.jsonl")
    assert (summary["records"], summary["failed"], summary["computed"]) == (40, 4, 40)

    draw = random.Random(0)
    journal = tmp_path / "stopped.journal.jsonl"
    for kill in range(1, KILLS + 1):
        process = start(tmp_path, "stopped.jsonl")
        wanted = kill * 9 + draw.randrange(4)
        while not journal.exists() or journal.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "stopped.jsonl").exists()
    finished = journal.read_bytes().count(b"\n")
    assert finish(tmp_path, "stopped.jsonl")["computed"] == 40 - finished
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    keys = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == 40  # nothing was computed twice
