"""Which files a batch is about: folders, globs, manifests, or what Python hands over.

Items are found one by one and in the same order every time: folders in the order of their sorted
names, manifests line by line.
"""

import glob
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from omni.batching.manifest import MANIFESTS, check_columns, read_manifest
from omni.errors import OmniError, RequestError
from omni.media import MediaLimits
from omni.media.detect import detect_family
from omni.media.source import COPY_BYTES, HEAD_BYTES, open_source

# Files of a folder with these names are media even if their content no longer says so: a damaged
# one must become an error in the results, not vanish from them.
MEDIA_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".jp2", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".heic", ".pdf", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"),
        *(".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".ogv", ".wav", ".flac", ".mp3", ".m4a"),
        *(".aac", ".ogg", ".opus", ".aiff", ".aif", ".au", ".caf", ".amr", ".wma"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to ask about.

    Attributes:
        name: How records call it.
        paths: Its files, in prompt order; usually one.
        questions: Its own questions; empty to be asked those of the batch.
        row: Further columns of its manifest row, for the record.
        error: Why it cannot be asked about, where its row says so already.
    """

    name: str
    paths: tuple[str, ...]
    questions: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    error: OmniError | None = None


def item_of(value: Any, folder: Path | None = None) -> Item:
    """Make an item of a path or a row.

    Args:
        value: A path; or a row with ``path`` (one or a list), optionally ``question`` or
            ``questions``, and any other columns.
        folder: Where the paths of a row start.

    Raises:
        RequestError: It is neither, the row has no path, or a question is no text.
    """
    if isinstance(value, str | os.PathLike):
        return Item(name=os.fspath(value), paths=(os.fspath(value),))
    if not isinstance(value, Mapping):
        raise RequestError(
            f"An item is a {type(value).__name__}; expected a path, or a row such as "
            '{"path": "clip.mp4"}.'
        )
    row = dict(value)
    paths = _texts(row.pop("path", None), "path")
    if not paths:
        raise RequestError(
            f"A row has no 'path' (it has: {', '.join(map(repr, value)) or 'nothing'}); expected "
            'one such as {"path": "clip.mp4", "question": "What happens?"}.'
        )
    questions = (*_texts(row.pop("question", None), "question"),)
    questions += _texts(row.pop("questions", None), "questions")
    row = {str(name): _as_json(content, f"column {name!r}") for name, content in row.items()}
    placed = tuple(str(folder / path) if folder is not None else path for path in paths)
    return Item(name=" + ".join(paths), paths=placed, questions=questions, row=row)


def _as_json(value: Any, where: str) -> Any:
    """A value of a row as it stands in a record: dates and decimals as text, no number as null.

    Raises:
        RequestError: It has no such form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _as_json(content, where) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(content, where) for content in value]
    raise RequestError(
        f"A row has a {type(value).__name__} in {where}, which no record can hold; expected text, "
        "numbers, dates, or lists and objects of them. Leave the column out."
    )


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    values = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(values, Sequence) or not all(
        isinstance(v, str | os.PathLike) for v in values
    ):
        raise RequestError(f"{name!r} of a row is {value!r:.80}; expected text or a list of texts.")
    return tuple(os.fspath(v) for v in values)


class ItemSource:
    """Every item of a batch; iterating starts from the first.

    Args:
        given: A path, a folder, a glob or a manifest, or a list of those (`expand`); else any
            iterable of single items.
        expand: Whether strings of a list may be folders, globs and manifests too.

    Raises:
        RequestError: A path does not exist, a pattern matches nothing, a manifest has no column
            ``path``.
    """

    def __init__(self, given: Any, *, expand: bool = False) -> None:
        self.skipped: Counter[str] = Counter()
        """Files of folders that are no media, by suffix, of the last iteration."""
        if isinstance(given, str | os.PathLike):
            given, expand = [given], True
        self.expands = expand
        self.given: Iterable[Any] = [os.fspath(path) for path in given] if expand else given
        if expand:
            for path in self.given:
                self._check(path)

    def __iter__(self) -> Iterator[Item]:
        self.skipped.clear()
        if self.expands:
            for path in self.given:
                yield from self._expand(path)
        else:
            for position, value in enumerate(self.given, start=1):
                yield _or_error(value, None, f"item {position}")

    @property
    def may_ask(self) -> bool:
        """Whether items may bring questions of their own, which paths of media do not."""
        return not self.expands or any(
            Path(path).suffix.lower() in MANIFESTS for path in self.given
        )

    def count(self) -> int | None:
        """How many items there are; None if only iterating would tell."""
        if self.expands:
            return sum(1 for _ in self)
        return len(self.given) if isinstance(self.given, Sequence) else None

    def _check(self, path: str) -> None:
        if Path(path).suffix.lower() in MANIFESTS and Path(path).is_file():
            check_columns(Path(path))
        elif not os.path.lexists(path) and not _matches(path):
            kind = "the pattern matches no file" if glob.has_magic(path) else "no such file"
            raise RequestError(
                f"{path}: {kind}; expected a folder, a glob, a media file or a manifest "
                f"({', '.join(MANIFESTS)})."
            )

    def _expand(self, path: str) -> Iterator[Item]:
        if os.path.isdir(path):
            yield from map(item_of, self._media_below(path))
        elif os.path.lexists(path) and Path(path).suffix.lower() in MANIFESTS:
            for number, row in read_manifest(Path(path)):
                yield _or_error(row, Path(path).parent, f"{path}:{number}")
        elif os.path.lexists(path):
            yield item_of(path)
        else:
            yield from map(item_of, _matches(path))

    def _media_below(self, folder: str) -> Iterator[str]:
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = os.path.join(place, name)
                if name.startswith("."):
                    continue
                if _is_media(path):
                    yield path
                else:
                    self.skipped[Path(name).suffix.lower() or name] += 1


def _is_media(path: str) -> bool:
    if Path(path).suffix.lower() in MEDIA_SUFFIXES:
        return True
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return detect_family(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    return sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))


def _or_error(value: Any, folder: Path | None, where: str) -> Item:
    if isinstance(value, Item):
        return value
    if isinstance(value, OmniError):
        return Item(name=where, paths=(), error=value)
    try:
        return item_of(value, folder)
    except OmniError as error:
        return Item(name=where, paths=(), error=error)


def content_hash(
    paths: Sequence[str], limits: MediaLimits, allowed_roots: Sequence[Path] | None
) -> str:
    """SHA-256 of the bytes of a file; of several files, the SHA-256 of theirs.

    Raises:
        MediaError: A file is missing, empty, too large or may not be read.
    """
    digests = []
    for path in paths:
        source = open_source(path, limits=limits, allowed_roots=allowed_roots)
        digest = hashlib.sha256()
        with source.open() as file:
            while block := file.read(COPY_BYTES):
                digest.update(block)
        digests.append(digest.hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to shard ``(i, n)``, i from 1.

    That depends on its name alone: files that come or go move no other.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % shard[1] == shard[0] - 1


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, i from 1 to n.

    Raises:
        RequestError: It is something else.
    """
    first, _, last = text.partition("/")
    if first.isascii() and first.isdigit() and last.isascii() and last.isdigit():
        shard = int(first), int(last)
        if 1 <= shard[0] <= shard[1]:
            return shard
    raise RequestError(f"The shard is {text!r}; expected i/n with i from 1 to n, such as 1/4.")
