"""WebDataset shards: tar files whose members share a key, ``000001.mp4``, ``000001.json``.

The key is the path up to the first dot of the file's name. One ``.json`` holds the conversation;
the other members are its media, named there (by the member's name or its extension) or, where it
names none, taken in the order of their names.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.media import LIST_KEYS, MediaFolder
from finetune.data.rows import Rows, open_data, parse_json
from finetune.data.sample import Origin, RowError
from omni.errors import RequestError
from omni.prompt import MediaKind

KINDS: dict[str, MediaKind] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"), "image"),
    **dict.fromkeys(("mp4", "mov", "mkv", "webm", "avi", "m4v"), "video"),
    **dict.fromkeys(("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac"), "audio"),
    "pdf": "document",
}
NOTES = ("txt", "cls", "id", "key", "cap", "meta")  # about the sample; nothing to learn from


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A file inside an uncompressed tar file."""

    shard: Path
    name: str
    offset: int
    num_bytes: int

    def open(self) -> io.RawIOBase:
        """Open it for reading from its first byte."""
        return _Slice(self)


class _Slice(io.RawIOBase):
    """Reads the bytes of one member."""

    def __init__(self, member: TarMember) -> None:
        self.name = f"{member.shard}/{member.name}"  # what messages call it
        self._file = open_data(member.shard)
        self._file.seek(member.offset)
        self._left = member.num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class TarRows(Rows):
    """The samples of one shard, in the order of their first members."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, folder)
        samples: dict[str, dict[str, TarMember]] = {}
        self._damage: dict[str, str] = {}
        for key, extension, member in self._members():
            sample = samples.setdefault(key, {})
            if extension in sample:
                self._damage[key] = f"found {member.name} twice in the shard"
            sample[extension] = member
        self._samples = list(samples.items())

    def _members(self) -> Iterator[tuple[str, str, TarMember]]:
        total = self.path.stat().st_size
        try:
            with tarfile.open(self.path, "r:") as tar:  # compressed shards have no offsets
                for info in tar:
                    key, extension = split_name(info.name)
                    if not info.isreg() or not extension:
                        if not info.isdir():
                            self._damage[key] = f"found {info.name}, which is no plain file.ext"
                        continue
                    if info.issparse() or info.offset_data + info.size > total:
                        self._damage[key] = f"found {info.name} cut off; the shard ends early"
                    yield (
                        key,
                        extension,
                        TarMember(
                            shard=self.path,
                            name=info.name,
                            offset=info.offset_data,
                            num_bytes=info.size,
                        ),
                    )
        except (tarfile.TarError, OSError) as error:
            raise RequestError(
                f"{self.path}: found no readable tar file ({error}); expected an uncompressed one, "
                "so unpack a .tar.gz first"
            ) from error

    def __len__(self) -> int:
        return len(self._samples)

    def origin(self, index: int) -> Origin:
        """Shard, number and key."""
        return Origin(file=str(self.path), row=index + 1, key=self._samples[index][0])

    def read(self, index: int) -> object:
        """Parse the sample's JSON and add the media that it does not name."""
        key, members = self._samples[index]
        if key in self._damage:
            raise RowError(self._damage[key])
        if "json" not in members:
            raise RowError(f"found {', '.join(sorted(members))}; expected a .json with 'messages'")
        with members["json"].open() as file:
            row = parse_json(file.read())
        if not isinstance(row, dict):
            return row
        named = set(_strings(row))
        for extension, member in sorted(members.items()):
            suffix = extension.rpartition(".")[2]
            if extension == "json" or suffix in NOTES or named & _names(extension, member):
                continue
            if suffix not in KINDS:
                known = ", ".join(KINDS)
                raise RowError(f"found {member.name}, which is none of {known}, {', '.join(NOTES)}")
            _append(row, KINDS[suffix], member.name)
        return row

    def media(self, index: int) -> MediaFolder:
        """The sample's own members, then the folder of the shard."""
        members = self._samples[index][1]
        names = {
            name: member
            for extension, member in members.items()
            for name in _names(extension, member)
        }
        return MediaFolder(root=self.folder, members=names)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: ``a/0001.left.jpg`` -> ``a/0001``, ``left.jpg``."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _names(extension: str, member: TarMember) -> set[str]:
    """How the sample's JSON may call a member."""
    return {extension, member.name, member.name.rpartition("/")[2]}


def _append(row: dict[str, Any], kind: MediaKind, name: str) -> None:
    """Add an unnamed medium to the row's list of its kind."""
    key = next((key for key, value in LIST_KEYS.items() if value == kind and row.get(key)), None)
    key = key or next(key for key, value in LIST_KEYS.items() if value == kind and key not in row)
    held = row.get(key) or []
    row[key] = [*(held if isinstance(held, list) else [held]), name]


def _strings(value: object) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
