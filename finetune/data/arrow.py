"""A directory that `datasets.Dataset.save_to_disk` wrote, read through pyarrow alone.

Media columns are structs of bytes and path there; they are handed to the media gateway as they
are, so that nothing is decoded twice, or by another library's rules.
"""

import bisect
import json
from pathlib import Path
from typing import Any

from finetune.data.rows import Rows
from omni.errors import RequestError

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / STATE_FILE).is_file() or (folder / SPLITS_FILE).is_file()


def saved_splits(folder: Path) -> dict[str, Path]:
    """Name and folder of each split; one without a name where there are none."""
    if not (folder / SPLITS_FILE).is_file():
        return {"": folder}
    names = _load(folder / SPLITS_FILE).get("splits", [])
    return {name: folder / _plain(name, folder) for name in names}


def arrow_files(folder: Path) -> list[Path]:
    """The arrow files of one split, in order."""
    listed = _load(folder / STATE_FILE).get("_data_files", [])
    return [folder / _plain(each["filename"], folder) for each in listed]


class ArrowRows(Rows):
    """The rows of one arrow file in stream format, mapped into memory when first read."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, folder)
        self._batches: list[Any] | None = None
        self._starts = [0]
        for batch in self._mapped():
            self._starts.append(self._starts[-1] + batch.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}  # another process maps the file itself

    def read(self, index: int) -> object:
        """Row `index` as Python values."""
        number = bisect.bisect_right(self._starts, index) - 1
        batch = self._mapped()[number].slice(index - self._starts[number], 1)
        return batch.to_pylist()[0]

    def _mapped(self) -> list[Any]:
        if self._batches is None:
            self._batches = _read_batches(self.path)
        return self._batches


def _read_batches(path: Path) -> list[Any]:
    try:
        import pyarrow
    except ImportError as error:
        raise RequestError(
            f"{path}: a saved `datasets` directory needs pyarrow, which is not installed. Install "
            "it with: pip install 'omni-toolkit[arrow]'; or write the rows as JSONL."
        ) from error
    try:
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        return list(stream)
    except (OSError, pyarrow.ArrowException) as error:
        raise RequestError(f"{path}: found no readable arrow file ({error})") from error


def _plain(name: str, folder: Path) -> str:
    """A name from a state file, which must stay inside its folder."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise RequestError(f"{folder}: its state names {name!r:.60}, expected a file beside it")
    return name


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: found no readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path}: found {type(value).__name__}, expected an object")
    return value
