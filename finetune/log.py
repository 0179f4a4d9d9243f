"""Figures of a run, one JSON line a step."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni.errors import RequestError

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends figures; a resumed run drops the lines after its checkpoint.

    Args:
        out: Folder of the run.
        step: Steps done.
        tensorboard: Also write what TensorBoard reads, into ``out/tensorboard``.

    Raises:
        RequestError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, step: int, *, tensorboard: bool = False) -> None:
        self.path = out / METRICS_FILE
        self.board = _open_board(out / "tensorboard", step) if tensorboard else None
        kept = []
        if self.path.exists() and step:
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        if self.board is not None:
            for name, value in {**row, **row.get("eval", {})}.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RequestError(
            "tensorboard=true needs the package tensorboard, which is not installed. Install it "
            "with pip, or leave the setting out: metrics.jsonl has the same figures."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _step_of(line: str) -> int:
    """Step of a line; a line that a dying process left half counts as later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize
