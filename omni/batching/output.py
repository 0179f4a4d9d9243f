"""The result file: written beside its place as records come, put there when all are in."""

import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omni.errors import RequestError

PARQUET_ROWS = 1_024  # of one row group; fixed, so that equal records give equal bytes


@runtime_checkable
class Writer(Protocol):
    """Takes records one by one; the file is there only after `finish`."""

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record."""

    def finish(self) -> None:
        """Put the file into its place, in one step."""

    def discard(self) -> None:
        """Leave nothing; without effect after `finish`."""


def check_format(path: Path) -> None:
    """Refuse a result file that `open_writer` cannot write, before anything is written.

    Raises:
        RequestError: The suffix is no format of ours, its folder is missing, or pyarrow is.
    """
    if not path.parent.is_dir():
        raise RequestError(f"{path}: there is no folder {path.parent}; make it first.")
    if path.suffix.lower() == ".parquet":
        _import_pyarrow(path)
    elif path.suffix.lower() != ".jsonl":
        raise RequestError(
            f"{path}: results are written as .jsonl or .parquet; choose one of them."
        )


def open_writer(path: Path) -> Writer:
    """Open the writer for a path, by its suffix.

    Raises:
        RequestError: As from `check_format`.
    """
    check_format(path)
    return JsonlWriter(path) if path.suffix.lower() == ".jsonl" else ParquetWriter(path)


def sidecar(out: Path, name: str) -> Path:
    """The path of a file that goes with a result file: ``a.jsonl`` -> ``a.journal.jsonl``."""
    return out.with_name(f"{out.stem}.{name}.jsonl")


def check_ours(out: Path) -> None:
    """Refuse to write over a file that no batch has made, such as the manifest itself.

    Args:
        out: The result file, which may not be there yet.

    Raises:
        RequestError: It is there, but the journal of its run is not.
    """
    journal = sidecar(out, "journal")
    if out.exists() and not journal.exists():
        raise RequestError(
            f"{out} is there, but not {journal.name}, by which a batch knows its own results. "
            "Choose another --out, or move the file away."
        )


def as_line(record: dict[str, Any]) -> bytes:
    """One record in the one way in which it is written: its own order of keys, no spaces."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class JsonlWriter:
    """One line a record.

    Args:
        path: The file in the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = _partial(path)
        self.file = self.partial.open("wb")

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record."""
        self.file.write(as_line(record))

    def finish(self) -> None:
        """Put the file into its place, in one step."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Leave nothing; without effect after `finish`."""
        self.file.close()
        self.partial.unlink(missing_ok=True)


class ParquetWriter:
    """One row a record; nested facts have columns of their own, or are JSON text.

    Args:
        path: The file in the end.

    Raises:
        RequestError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        pa, pq = _import_pyarrow(path)
        text, whole = pa.string(), pa.int64()
        self.pa = pa
        self.schema = pa.schema(
            dict.fromkeys(("item", "sha256"), text)
            | {"page": whole, "start_s": pa.float64(), "end_s": pa.float64()}
            | {"combined": whole}
            | dict.fromkeys(("field", "question", "answer", "parsed", "finish_reason"), text)
            | dict.fromkeys(("reasoning", "error", "message"), text)
            | {f"{name}_tokens": whole for name in ("prompt", "media", "text", "answer")}
            | {"lowered": text, "seed": whole, "model": text, "fingerprint": text}
            | {"versions": text, "row": text}
        )
        self.path = path
        self.partial = _partial(path)
        self.writer = pq.ParquetWriter(str(self.partial), self.schema)
        self.rows: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record."""
        tokens = record["tokens"] or {}
        error = record["error"] or {}
        span = record["span"] or {}
        self.rows.append(
            {
                **{
                    name: record[name] for name in ("item", "sha256", "field", "question", "answer")
                },
                "parsed": None if record["parsed"] is None else json.dumps(record["parsed"]),
                "finish_reason": record["finish_reason"],
                **{name: span.get(name) for name in ("page", "start_s", "end_s")},
                "combined": record["combined"],
                "reasoning": record["reasoning"],
                "error": error.get("class"),
                "message": error.get("message"),
                **{f"{k}_tokens": tokens.get(k) for k in ("prompt", "media", "text", "answer")},
                "lowered": json.dumps(tokens.get("lowered", [])),
                "seed": record["seed"],
                "model": record["model"]["name"],
                "fingerprint": record["model"]["fingerprint"],
                "versions": json.dumps(record["versions"]),
                "row": json.dumps(record["row"]),
            }
        )
        if len(self.rows) == PARQUET_ROWS:
            self._flush()

    def finish(self) -> None:
        """Put the file into its place, in one step."""
        self._flush()
        self.writer.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Leave nothing; without effect after `finish`."""
        self.writer.close()
        self.partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(self.pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []


def _import_pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RequestError(
            f"{path}: writing Parquet needs pyarrow; pip install 'omni-toolkit[arrow]', or "
            "write .jsonl."
        ) from error
    return pa, pq


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
