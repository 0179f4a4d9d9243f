"""What docs/budget.md says that `omni plan` prints is what it prints."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni.cli import app
from omni.errors import OmniError

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```text\n\$ omni (plan (?:[^\n]*\\\n)*[^\n]*)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "budget.md").read_text())


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_a_block_is_what_the_command_prints(command: str, shown: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT / "examples" / "media")
    words = shlex.split(command.replace("\\\n", " "))
    ran = CliRunner().invoke(app, words, env={"COLUMNS": "112"})
    printed = ran.output
    if isinstance(ran.exception, OmniError):
        printed = f"error: {ran.exception}"
    assert printed.split() == shown.split()


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 3
