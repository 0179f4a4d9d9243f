"""Any data that people have -> a list of samples, in which bad rows keep their places."""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeVar, overload

from finetune.data import arrow, llama_factory
from finetune.data.formats import Layout, read_row
from finetune.data.rows import JsonArray, JsonLines, Rows, open_data
from finetune.data.sample import BadRow, Origin, Sample
from finetune.data.webdataset import TarRows
from omni.errors import OmniError, RequestError

Entry = TypeVar("Entry")

HEAD_BYTES = 4_096
WHOLE_BYTES = 2**26  # of a file that a digest reads whole; of a larger one it reads pieces
PIECES, PIECE_BYTES = 64, 2**16
EXPECTED = (
    "expected a .jsonl or .json file, a dataset_info.json, a folder that datasets' save_to_disk "
    "wrote, or .tar shards"
)


class Dataset(Sequence["Sample | BadRow"]):
    """Samples and bad rows, by position; any of them can be asked for at any time.

    A row that cannot be read is a `BadRow` at its place, never an exception, so positions mean the
    same in every run. Media are not opened here.

    Args:
        files: Readers of the rows, each with the layout of its columns.
        positions: Which rows of all, in which order; None is every row.
    """

    def __init__(
        self,
        files: Sequence[tuple[Rows, Layout | None]],
        positions: Sequence[int] | None = None,
    ) -> None:
        self.files = list(files)
        self._ends = list(accumulate(len(rows) for rows, _ in self.files))
        self._positions = positions

    def __len__(self) -> int:
        if self._positions is not None:
            return len(self._positions)
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Sample | BadRow: ...

    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...

    def __getitem__(self, index: int | slice) -> "Sample | BadRow | Dataset":
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        rows, layout, row = self._find(index)
        origin = rows.origin(row)
        try:
            return read_row(rows.read(row), origin, rows.media(row), layout)
        except OmniError as error:
            return BadRow(origin=origin, reason=str(error))

    def __iter__(self) -> Iterator[Sample | BadRow]:
        return (self[index] for index in range(len(self)))

    def origin(self, index: int) -> Origin:
        """Where a row stands, without reading it."""
        rows, _, row = self._find(index)
        return rows.origin(row)

    def subset(self, indices: Sequence[int]) -> "Dataset":
        """Some of the rows, such as those held out for evaluation.

        Args:
            indices: Positions in this data set.
        """
        base = range(len(self)) if self._positions is None else self._positions
        return Dataset(self.files, [base[index] for index in indices])

    def digest(self) -> str:
        """A short name of the rows and their order, by the content of their files.

        Files of more than `WHOLE_BYTES` are known by their size and `PIECES` pieces; media that are
        files of their own are not read.
        """
        found = hashlib.sha256(repr(self._positions and list(self._positions)).encode())
        for rows, _ in self.files:
            size = rows.path.stat().st_size
            found.update(str(size).encode())
            with open_data(rows.path) as file:
                if size <= WHOLE_BYTES:
                    found.update(file.read())
                    continue
                for piece in range(PIECES):
                    file.seek(piece * (size - PIECE_BYTES) // (PIECES - 1))
                    found.update(file.read(PIECE_BYTES))
        return found.hexdigest()[:16]

    def _find(self, index: int) -> tuple[Rows, Layout | None, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        position = index if self._positions is None else self._positions[index]
        number = bisect.bisect_right(self._ends, position)
        rows, layout = self.files[number]
        return rows, layout, position - (self._ends[number - 1] if number else 0)


def open_dataset(
    path: str | Path, *, name: str | None = None, media_dir: str | Path | None = None
) -> Dataset:
    """Open data in any of the formats.

    Args:
        path: A ``.jsonl`` or ``.json`` file, a ``.tar`` shard, a ``dataset_info.json``, or a folder
            of these or of a saved `datasets` data set. ``#NAME`` at its end is the same as `name`.
        name: Which set of a ``dataset_info.json`` or which split; several with commas between.
        media_dir: Folder that relative media paths start from; by default that of the data file.

    Raises:
        RequestError: Nothing readable there, or a name is needed.
    """
    path = Path(path)
    if name is None and not path.exists() and "#" in path.name:
        start, _, name = str(path).rpartition("#")
        path = Path(start)
    root = None if media_dir is None else Path(media_dir)
    if not path.exists():
        raise RequestError(f"{path}: no such file or folder; {EXPECTED}")
    info = path / llama_factory.FILE_NAME if path.is_dir() else path
    if path.is_dir() and arrow.is_saved_dataset(path):
        splits = arrow.saved_splits(path)
        files: list[tuple[Rows, Layout | None]] = [
            (arrow.ArrowRows(file, root or folder), None)
            for folder in _choose(splits, name, path)
            for file in arrow.arrow_files(folder)
        ]
    elif info.name == llama_factory.FILE_NAME and info.is_file():
        files = [
            (rows, each.layout)
            for each in _choose(llama_factory.load_sets(info), name, info)
            for rows in _open_files(each.path, root or info.parent)
        ]
    else:
        if name is not None:
            raise RequestError(f"{path}: found name {name!r}, but these data have no named sets")
        files = [(rows, None) for rows in _open_files(path, root)]
    dataset = Dataset(files)
    if not len(dataset):
        raise RequestError(f"{path}: found no rows; {EXPECTED}")
    return dataset


def _choose(entries: dict[str, Entry], name: str | None, path: Path) -> list[Entry]:
    """Entries by name; only a single one needs no name."""
    if name is None:
        if len(entries) == 1:
            return list(entries.values())
        raise RequestError(
            f"{path}: found {len(entries)} sets ({', '.join(entries)}); name those to read, "
            f"such as {path}#{next(iter(entries))}"
        )
    wanted = [each.strip() for each in name.split(",")]
    for each in wanted:
        if each not in entries:
            known = ", ".join(filter(None, entries)) or "no named ones"
            raise RequestError(f"{path}: found no set {each!r}; expected one of {known}")
    return [entries[each] for each in wanted]


def _open_files(path: Path, root: Path | None) -> list[Rows]:
    """Readers of one file, or of all data files of a folder in the order of their names."""
    if path.is_dir():
        tars = sorted(path.rglob("*.tar"))
        files = tars or sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
        if not files:
            raise RequestError(f"{path}: found none of the data formats in the folder; {EXPECTED}")
        return [rows for file in files for rows in _open_files(file, root)]
    folder = root or path.parent
    if path.suffix == ".tar":
        return [TarRows(path, folder)]
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise RequestError(f"{path}: found the ending {path.suffix!r}; {EXPECTED}")
    with open_data(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    return [JsonArray(path, folder) if head.startswith(b"[") else JsonLines(path, folder)]
