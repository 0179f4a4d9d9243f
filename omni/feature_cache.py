"""What the towers gave for each medium, kept on disk, and what is known about the medium itself.

What the towers gave is named by the weights of the towers and by one of two things:

- the very values that the tower would read (decoded, resized and normalised pixels, or the log-mel
  spectrogram), one entry a window: whatever setting, file or library changes these gives another
  name, and nothing else does;
- a name for the medium's bytes, and all that was planned with it, one entry a medium: then what is
  there needs no decoding either.

What is known about a medium (sizes, times, lengths) is named by its bytes alone: neither the model
nor the place of the file matters.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from omni.errors import RequestError
from omni.inputs import LazyWindows, MediaItem, OmniInputs, Window
from omni.model import OmniModel
from omni.towers import merging_rate, needs_attention, run_tower

VERSION = 3


class FeatureCache:
    """Replaces the windows of media by their hidden states, from disk where they are there.

    Args:
        folder: Made if missing; several runs and models may share it.
        model: Its towers must not change while the cache is used.
        max_bytes: Most that the folder may hold; what was used longest ago is deleted. None: all.
    """

    def __init__(self, folder: Path, model: OmniModel, *, max_bytes: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.max_bytes = folder, model, max_bytes
        self.hits = self.misses = 0
        self.lock = threading.Lock()  # of the size; several threads may encode
        how = (VERSION, model.dtype, model.config.audio_normalize)
        digest = hashlib.sha256(" ".join(map(str, how)).encode())
        for tower in (model.vision_model, model.audio_tower):
            if tower is None:
                continue
            digest.update(json.dumps(tower.config.to_dict(), sort_keys=True, default=str).encode())
            for name, value in tower.state_dict().items():
                digest.update(name.encode())
                digest.update(_bytes_of(value))
        self.tower_digest = digest.digest()
        self.size = sum(map(_size, self._entries())) if max_bytes is not None else 0

    def __call__(self, inputs: OmniInputs, source: str | None = None) -> OmniInputs:
        """The same row with hidden states in place of pixels and spectrograms.

        Args:
            inputs: Without a source its windows are read once, now.
            source: Names the bytes of its media, and the part of them that is asked about. Given,
                windows are read, and kept, when the model asks for them.

        Raises:
            RequestError: A reduction asks the tower itself.
        """
        for item in inputs.media:
            check_cacheable(item)
        if source is None:
            media = [replace(i, windows=list(map(self._keep(i), i.windows))) for i in inputs.media]
        else:
            media = [self._lazy(item, f"{source} {n}") for n, item in enumerate(inputs.media)]
        return replace(inputs, media=media)

    # ---------------------------------------------------------------- facts about media

    def facts(self, name: str) -> dict[str, Any] | None:
        """What `keep_facts` was given under a name; None if it was nothing, or is gone."""
        path = self._path_of_facts(name)
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            os.utime(path)
        except FileNotFoundError:
            return None
        except ValueError:  # torn by a full disk, say
            _remove(path)
            return None
        return found

    def keep_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what is known about a medium, so that it can be planned without being opened."""
        path = self._path_of_facts(name)
        with _new(path) as new:
            new.write_text(json.dumps(facts))
        self._added(path)

    # ---------------------------------------------------------------- by the tower's input

    def _keep(self, item: MediaItem) -> Callable[[Window], Window]:
        def keep(window: Window) -> Window:
            facts = (item.modality, item.grid[1:], *window[1:], merging_rate(item))
            path = self._path((*facts, window.rows.shape), _bytes_of(window.rows))
            try:
                rows = load_file(path)["hidden"]
                os.utime(path)
            except FileNotFoundError:
                self.misses += 1
                hidden = self._encode(item, window)
                with _new(path) as new:
                    save_file({"hidden": hidden.rows}, new)
                self._added(path)
                return hidden
            self.hits += 1
            return window._replace(rows=rows, is_hidden=True)

        return keep

    # ---------------------------------------------------------------- by the source

    def _lazy(self, item: MediaItem, source: str) -> MediaItem:
        plan = (item.modality, item.grid, item.time_spans, merging_rate(item), dict(item.chosen))
        path = self._path((source, *plan))
        return replace(item, windows=LazyWindows(lambda: self._windows(item, path)))

    def _windows(self, item: MediaItem, path: Path) -> Iterator[Window]:
        number = 0
        try:
            pieces = sorted(path.iterdir())
            os.utime(path)
            self.hits += 1
            for piece in pieces:
                with safe_open(piece, framework="pt") as file:
                    num_valid, num_tokens = json.loads(file.metadata()["counts"])
                    hidden = file.get_tensor("hidden")
                yield Window(hidden, num_valid, num_tokens, is_hidden=True)
                number += 1
            return
        except FileNotFoundError:  # never there, or deleted by another run in the meantime
            if number:
                yield from map(partial(self._encode, item), islice(item.windows, number, None))
                return
        self.misses += 1
        with _new(path) as new:
            new.mkdir()
            for number, window in enumerate(item.windows):
                hidden = self._encode(item, window)
                counts = json.dumps([window.num_valid, window.num_tokens])
                piece = new / f"{number:06}.safetensors"
                save_file({"hidden": hidden.rows}, piece, metadata={"counts": counts})
                yield hidden
        self._added(path)

    # ---------------------------------------------------------------- parts

    def _encode(self, item: MediaItem, window: Window) -> Window:
        with torch.no_grad():
            [hidden], _ = run_tower(self.model, [item], [(0, window)])
        return window._replace(rows=hidden.detach().cpu().contiguous(), is_hidden=True)

    def _path_of_facts(self, name: str) -> Path:
        return self._place(hashlib.sha256(f"{VERSION} facts {name}".encode()).hexdigest())

    def _path(self, facts: tuple[Any, ...], content: bytes = b"") -> Path:
        digest = hashlib.sha256(self.tower_digest + repr(facts).encode())
        digest.update(content)
        return self._place(digest.hexdigest())

    def _place(self, key: str) -> Path:
        (self.folder / key[:2]).mkdir(exist_ok=True)
        return self.folder / key[:2] / key

    def _entries(self) -> Iterator[Path]:
        """What is whole; what a run is writing, or deleting, has a suffix."""
        return (entry for entry in self.folder.glob("??/*") if not entry.suffix)

    def _added(self, path: Path) -> None:
        """Count a new entry, and delete the oldest ones while there is too much."""
        if self.max_bytes is None:
            return
        with self.lock:
            self.size += _size(path)
            if self.size <= self.max_bytes:
                return
            for entry in sorted(self._entries(), key=_last_use):
                self.size -= _size(entry)
                _remove(entry)
                if self.size <= self.max_bytes:
                    return


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of another when all is written."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        yield new
        if not path.exists():
            new.replace(path)
    finally:
        _remove(new)


def check_cacheable(item: MediaItem) -> None:
    """Refuse a medium whose reduction asks the tower itself.

    Raises:
        RequestError: It does.
    """
    if needs_attention(item.reduction):
        raise RequestError(
            f"{item.name}: {item.reduction!r} asks what the tower attends to, which is not "
            "cached. Leave the cache of features out, or choose another reduction."
        )


def _remove(entry: Path) -> None:
    """Delete an entry; in one step it is gone for those who look, so that none is seen in part."""
    gone = entry.with_name(f"{entry.name}.{os.getpid()}.{threading.get_ident()}.gone")
    try:
        entry.rename(gone)
    except FileNotFoundError:
        return
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)


def _size(entry: Path) -> int:
    """Bytes of an entry; what another run has deleted has none."""
    try:
        files = list(entry.iterdir()) if entry.is_dir() else [entry]
        return sum(file.stat().st_size for file in files)
    except FileNotFoundError:
        return 0


def _last_use(entry: Path) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
