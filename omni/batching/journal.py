"""What a batch has finished, one JSON line each, appended and flushed as it happens.

The journal outlives `kill -9`: at most its last line is torn, which is cut off when it is opened
again. Of each line only its key and place are kept in memory (about 200 bytes a task).
"""

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from omni.errors import RequestError


class Journal:
    """Finished work by key; the last line of a key counts. Threads may share it.

    Args:
        path: The file, made if it is not there; None for one that vanishes with this object.
        forget_errors: Leave out lines that have an ``error``, so that it is tried again.

    Raises:
        RequestError: Another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path | None, *, forget_errors: bool = False) -> None:
        self.places: dict[bytes, int] = {}
        self.lock = threading.Lock()  # of the file's position
        if path is None:
            self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
            return
        try:
            self.file = path.open("a+b")
        except OSError as error:
            raise RequestError(
                f"{path}: cannot be written ({error.strerror}); choose another --out."
            ) from error
        _lock(self.file, path)
        self._read(forget_errors)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self.places

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was added under a key; None if nothing was."""
        place = self.places.get(bytes.fromhex(key))
        if place is None:
            return None
        with self.lock:
            self.file.seek(place)
            line = self.file.readline()
        found: dict[str, Any] = json.loads(line)
        return found

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        line = json.dumps({"key": key, **value}).encode() + b"\n"
        with self.lock:
            place = self.file.seek(0, os.SEEK_END)
            self.file.write(line)
            self.file.flush()
            self.places[bytes.fromhex(key)] = place

    def close(self) -> None:
        """Close the file, which unlocks it."""
        self.file.close()

    def _read(self, forget_errors: bool) -> None:
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            key = _key(line, forget_errors)
            if key is not None:
                self.places[key] = end
            end += len(line)
        self.file.truncate(end)


def _key(line: bytes, forget_errors: bool) -> bytes | None:
    try:
        found = json.loads(line)
        return None if forget_errors and found.get("error") else bytes.fromhex(found["key"])
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ):  # not ours, or damaged: its task is done again
        return None


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RequestError(
            f"{path}: another process is writing it; wait for it, or give each shard an --out of "
            "its own."
        ) from error
