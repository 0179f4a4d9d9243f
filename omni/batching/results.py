"""What a batch says of each task: the result, which the journal keeps, and the record around it."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from omni.batching.journal import Journal
from omni.batching.lots import Task
from omni.batching.output import as_line, sidecar
from omni.batching.summary import Summary
from omni.errors import RequestError
from omni.reply import Reply

RESULT = ("answer", "parsed", "finish_reason", "reasoning", "tokens", "error")


class Results:
    """Answers and errors as they are found: in the journal, with the seconds of each beside it.

    Threads may share it.

    Args:
        out: Result file, which the files of both stand beside; None keeps them for this run only.
        provenance: What every record says besides: seed, model and versions.
        summary: Counts what this run finds.
        forget_errors: As in `Journal`.

    Raises:
        RequestError: As from `Journal`, or the timings cannot be written.
    """

    def __init__(
        self,
        out: Path | None,
        provenance: Mapping[str, Any],
        summary: Summary,
        *,
        forget_errors: bool,
    ) -> None:
        file = None if out is None else sidecar(out, "journal")
        self.journal = Journal(file, forget_errors=forget_errors)
        self.timings: IO[bytes] | None = None
        if out is not None:
            self.timings = self._open(sidecar(out, "timings"))
        self.provenance, self.summary = provenance, summary
        self.lock = threading.Lock()

    def find(self, task: Task) -> dict[str, Any] | None:
        """The result or the error of a task; None if there is none yet."""
        return self.journal.get(task.key) or self.journal.get(task.error_key)

    def add(self, task: Task, reply: Reply, *, batch: int) -> None:
        """Keep an answer.

        Args:
            task: Has no inputs afterwards.
            reply: To it.
            batch: Tasks that were answered together.
        """
        self.journal.add(task.key, {**make_result(reply), **self.provenance})
        self._count()
        if self.timings is not None:
            times = {
                "key": task.key,
                "item": task.item.name,
                "span": None if task.span is None else task.span.to_dict(),
                "question": task.question,
                "seconds": {"open": round(task.open_s, 4), **reply.ledger.seconds},
                "batch": batch,
            }
            self.timings.write(as_line(times))
            self.timings.flush()
        task.inputs = None

    def fail(self, task: Task, error: Exception) -> None:
        """Keep an error, by its class and the first line of what it says."""
        lines = str(error).splitlines()
        found = {"class": type(error).__name__, "message": lines[0] if lines else ""}
        self.journal.add(task.error_key, {"error": found, **self.provenance})
        task.inputs = task.error = None  # an error holds on to the frames that it came through
        self._count()

    def close(self) -> None:
        """Close both files."""
        self.journal.close()
        if self.timings is not None:
            self.timings.close()

    def _open(self, path: Path) -> IO[bytes]:
        try:
            return path.open("ab")
        except OSError as error:
            self.journal.close()  # which stays locked otherwise, for as long as the error is held
            raise RequestError(
                f"{path}: cannot be written ({error.strerror}); choose another --out."
            ) from error

    def _count(self) -> None:
        with self.lock:
            self.summary.computed += 1


def make_result(reply: Reply) -> dict[str, Any]:
    """What the journal keeps of a reply: all that does not change from run to run."""
    ledger = reply.ledger
    lowered = {change.partition(": ")[2] for change in ledger.lowered}
    return {
        "answer": reply.text,
        "parsed": reply.parsed,
        "finish_reason": reply.finish_reason,
        "reasoning": reply.reasoning,
        "tokens": {
            "prompt": ledger.prompt_tokens,
            "media": ledger.prompt_tokens - ledger.text_tokens,
            "text": ledger.text_tokens,
            "answer": ledger.answer_tokens,
            "lowered": sorted(lowered),
        },
    }


def make_record(task: Task, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a task.

    Args:
        task: The task.
        found: Its result or error, as the journal has it.
    """
    return {
        "item": task.item.name,
        "sha256": task.sha256,
        "span": None if task.span is None else task.span.to_dict(),
        "combined": len(task.parts) or None,
        "field": task.field,
        "question": task.question,
        **{name: found.get(name) for name in RESULT},
        **{name: found[name] for name in ("seed", "model", "versions")},
        "row": dict(task.item.row),
    }
