"""Lists of items in a file: JSONL, CSV or Parquet, read row by row."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni.errors import OmniError, RequestError

MANIFESTS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 256  # read at a time


def check_columns(path: Path) -> None:
    """Look at the columns before anything runs; a JSONL file has none of its own.

    Raises:
        RequestError: There is no column ``path``, or the file cannot be read.
    """
    if path.suffix.lower() == ".jsonl":
        return
    if path.suffix.lower() == ".csv":
        columns = _check_csv(path)
    else:
        columns = _open_parquet(path).schema_arrow.names
    if "path" not in columns:
        raise RequestError(
            f"{path}: found the columns {', '.join(columns) or 'none'}; expected one named 'path', "
            "and optionally 'question'."
        )


def read_manifest(path: Path) -> Iterator[tuple[int, dict[str, Any] | OmniError]]:
    """Yield the rows with their number, or what is wrong with them.

    Args:
        path: The manifest; its kind is told by its suffix.

    Yields:
        The line (JSONL, CSV) or row (Parquet) from 1, and its columns.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, _csv_row(row)
    else:
        number = 0
        for batch in _open_parquet(path).iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _check_csv(path: Path) -> list[str]:
    """Read a CSV file to its end, so that no row is a surprise, and return its columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            for _ in reader:
                pass
    except UnicodeDecodeError as error:
        raise RequestError(
            f'{path}: found text that is no UTF-8 ({error.reason}); save the file as "CSV UTF-8".'
        ) from error
    except csv.Error as error:
        raise RequestError(f"{path}: line {reader.line_num} is no CSV ({error}).") from error
    return columns


def _csv_row(row: dict[Any, Any]) -> dict[str, Any] | OmniError:
    if None in row:
        return RequestError("The row has more cells than the header has columns; quote commas.")
    return {name: value for name, value in row.items() if value is not None}


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | OmniError]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, RequestError(f"The line is no JSON ({error}).")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, RequestError(f"The line is a {type(row).__name__}, not an object.")


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RequestError(
            f"{path}: reading and writing Parquet needs pyarrow; pip install "
            "'omni-toolkit[arrow]', or use JSONL."
        ) from error
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise RequestError(f"{path}: no Parquet file can be read there ({error}).") from error
