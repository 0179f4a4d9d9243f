"""The README's code blocks run: Python as it stands, `omni` lines through the command line."""

import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from omni import cli

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return [match["code"] for match in BLOCK.finditer(text) if match["language"] == language]


def commands() -> list[str]:
    """Lines of `console` blocks that start with a prompt."""
    lines = "\n".join(blocks("console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run, one after another: the examples are there, and what they write."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(command: str, folder: Path, monkeypatch, capsys) -> str:
    """What a command line prints; it must succeed."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert not stop.value.code, printed.err
    return printed.out.strip()


# `omni eval` needs the data folder, which is not in the repository, and `omni demo` does not end;
# their own tests run them.
ELSEWHERE = ("omni eval", "omni demo")
RUN_HERE = [c for c in commands() if c.startswith("omni ") and not c.startswith(ELSEWHERE)]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", RUN_HERE)
def test_omni_lines_run(command, folder, monkeypatch, capsys):
    assert run(command, folder, monkeypatch, capsys)


def test_make_lines_name_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [c.split()[1] for c in commands() if c.startswith("make ")]
    assert named
    assert set(named) <= targets


def test_the_session_shown_is_what_the_embedded_model_says(folder, monkeypatch, capsys):
    """A line below `$ omni ask` that is no command is its answer."""
    lines = "\n".join(blocks("console")).splitlines()
    shown = [
        (line.removeprefix("$ "), below)
        for line, below in pairwise(lines)
        if line.startswith("$ omni ask") and not below.startswith("$ ")
    ]
    assert shown
    for command, answer in shown:
        assert run(command, folder, monkeypatch, capsys) == answer.strip()
