"""Figures of a run, one JSON line a step."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends figures; a resumed run drops the lines after its checkpoint.

    Args:
        out: Folder of the run.
        step: Steps done.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / METRICS_FILE
        kept = []
        if self.path.exists() and step:
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> int:
    """Step of a line; a line that a dying process left half counts as later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize
