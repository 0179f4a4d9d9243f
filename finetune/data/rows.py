"""Where rows come from: files that can be asked for any row, so that order is the trainer's choice.

Only places are held in memory, not rows, wherever the format allows: byte offsets of JSON lines
and of tar members. Reading opens and closes its file, so readers survive forks and pickling.
"""

import json
from abc import ABC, abstractmethod
from array import array
from pathlib import Path
from typing import Any

from finetune.data.media import MediaFolder
from finetune.data.sample import Origin, RowError
from omni.errors import RequestError


class Rows(ABC):
    """The rows of one file.

    Attributes:
        path: The file.
        folder: Where relative media paths start.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> object:
        """Parse row `index`, counted from 0.

        Raises:
            RowError: It cannot be parsed.
        """

    def origin(self, index: int) -> Origin:
        """Where row `index` stands."""
        return Origin(file=str(self.path), row=index + 1)

    def media(self, index: int) -> MediaFolder:
        """Where the media of row `index` are."""
        del index  # other formats keep media beside the row
        return MediaFolder(root=self.folder)


class JsonLines(Rows):
    """One JSON object a line; empty lines are passed over but counted."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, folder)
        self._starts, self._lines = array("Q"), array("Q")
        start = 0
        with open_data(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, index: int) -> Origin:
        """The line, as an editor counts it."""
        return Origin(file=str(self.path), row=self._lines[index])

    def read(self, index: int) -> object:
        """Parse one line."""
        with open_data(self.path) as file:
            file.seek(self._starts[index])
            return parse_json(file.readline())


class JsonArray(Rows):
    """A JSON list of objects; held in memory, since its rows cannot be found otherwise."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, folder)
        with open_data(path) as file:
            try:
                rows = parse_json(file.read())
            except RowError as error:
                raise RequestError(
                    f"{path}: {error}. A damaged list cannot be read in part; repair it, or write "
                    "one row a line (JSONL), where only the damaged row is lost"
                ) from error
        if not isinstance(rows, list):
            raise RequestError(f"{path}: found {type(rows).__name__}, expected a list of rows")
        self._rows: list[Any] = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> object:
        """The parsed element."""
        return self._rows[index]


def open_data(path: Path) -> Any:
    """Open a data file for reading bytes.

    Raises:
        RequestError: It cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise RequestError(f"{path}: the data cannot be read ({error.strerror})") from error


def parse_json(data: bytes) -> object:
    """Parse UTF-8 JSON, with or without a byte order mark.

    Raises:
        RowError: It is no JSON; says where.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowError(
            f"found bytes that are not UTF-8 ({error.reason} at {error.start})"
        ) from None
    except json.JSONDecodeError as error:
        raise RowError(
            f"found text that is not JSON: {error.msg} at column {error.colno}"
        ) from None
    except RecursionError:
        raise RowError("found JSON that is nested too deeply") from None


def _refuse_constant(name: str) -> object:
    raise RowError(f"found {name}, which is not JSON; expected a number or null")
