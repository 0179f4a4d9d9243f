"""What a row names as media -> `MediaRef`s in the order of the conversation.

A row brings media in two ways, and both may meet in one conversation:

    parts   {"type": "image", "path": "a.jpg"} inside a turn's content
    lists   "images": ["a.jpg"], taken in turn by tags (<image>) or by parts without a source

Every tag needs its medium and every medium its tag: one that is left over would be trained on as
text, or not at all.
"""

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.messages import Turn
from finetune.data.sample import MediaRef, RowError
from finetune.data.tags import TAG, TAG_OF, tag_kind
from omni.prompt import PART_KINDS, MediaKind

LIST_KEYS: dict[str, MediaKind] = {
    "image": "image",
    "images": "image",
    "video": "video",
    "videos": "video",
    "audio": "audio",
    "audios": "audio",
    "document": "document",
    "documents": "document",
    "pdf": "document",
    "pdfs": "document",
}
SOURCE_KEYS = ("path", "url", "base64", "bytes", "data", "file_data")
PART_EXTRAS = ("type", "text", "format", "detail", "filename")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFolder:
    """Where the media of a row are looked for.

    Attributes:
        root: Folder that relative paths start from.
        members: What a tar shard holds for the row, by name; they come before the folder.
    """

    root: Path
    members: Mapping[str, Any] = field(default_factory=dict)

    def ref(self, value: object, kind: MediaKind | None, where: str) -> MediaRef:
        """The medium that a value names.

        Args:
            value: A path, an address, bytes, or an object with one of `SOURCE_KEYS`.
            kind: What it should be.
            where: What to call the place in a message.

        Raises:
            RowError: It names no medium.
        """
        if isinstance(value, Mapping):
            value = self._unwrap({k: v for k, v in value.items() if v is not None}, where)
        if isinstance(value, bytes):
            return MediaRef(source=value, kind=kind)
        if not isinstance(value, str) or not value:
            raise RowError(
                f"{where}: found {value!r:.60} as a medium, expected a path, an address, or an "
                f"object with one of {', '.join(SOURCE_KEYS)}"
            )
        if value in self.members:
            return MediaRef(source=self.members[value], kind=kind)
        if value.startswith(("data:", "http:", "https:", "file:")):
            return MediaRef(source=value, kind=kind)
        return MediaRef(source=self.root / value, kind=kind)

    def _unwrap(self, value: Mapping[str, Any], where: str) -> object:
        """Bytes come first: beside them a path is only a name."""
        if unknown := sorted(set(value) - {*SOURCE_KEYS, *PART_EXTRAS}):
            raise RowError(f"{where}: found the key {unknown[0]!r}, expected {SOURCE_KEYS}")
        if "bytes" in value:
            return bytes(value["bytes"]) if isinstance(value["bytes"], bytes) else value["bytes"]
        for key in ("base64", "data"):
            if isinstance(text := value.get(key), str) and not text.startswith("data:"):
                return _from_base64(text, where)
        return next((value[key] for key in SOURCE_KEYS if key in value), None)


def place_media(
    turns: Sequence[Turn], row: Mapping[str, Any], folder: MediaFolder
) -> tuple[list[Turn], list[MediaRef]]:
    """Find the medium of every tag and every media part.

    Where a row has media of a kind but neither tag nor part for it, they stand before the first
    user turn, as TRL and ms-swift place them.

    Args:
        turns: Turns as `read_turns` gives them.
        row: Has the lists of `LIST_KEYS`.
        folder: Where relative paths start.

    Returns:
        The turns, whose media parts have lost their sources, and the media in their order.

    Raises:
        RowError: Tags and media do not match.
    """
    lists = read_lists(row, folder)
    turns = _with_missing_tags(turns, lists)
    counts = {kind: len(refs) for kind, refs in lists.items()}
    media: list[MediaRef] = []
    placed: list[Turn] = []
    for number, turn in enumerate(turns, start=1):
        if isinstance(turn["content"], str):
            for match in TAG.finditer(turn["content"]):
                media.append(_next(lists, tag_kind(match), number, counts))
            placed.append(turn)
            continue
        parts = []
        for part in turn["content"]:
            parts.append(_place_part(part, number, folder, lists, counts, media))
        placed.append({**turn, "content": parts})
    for kind, left in lists.items():
        if left:
            raise RowError(
                f"the row has {counts[kind]} media in its list of {kind}s but the conversation has "
                f"places for {counts[kind] - len(left)}; write {TAG_OF[kind]} once for each"
            )
    return placed, media


def read_lists(row: Mapping[str, Any], folder: MediaFolder) -> dict[MediaKind, deque[MediaRef]]:
    """The media that a row lists, by kind."""
    lists: dict[MediaKind, deque[MediaRef]] = {}
    for key, kind in LIST_KEYS.items():
        value = row.get(key)
        if value is None or value == []:
            continue
        if kind in lists:
            raise RowError(f"found both {key!r} and another list of {kind}s; keep one of them")
        entries = value if isinstance(value, list | tuple) else [value]
        for position, entry in enumerate(entries, start=1):
            if isinstance(entry, list | tuple):
                raise RowError(
                    f"{key} {position}: found a list, such as a video's frames; expected one file. "
                    "Write the frames to a video file"
                )
            ref = folder.ref(entry, kind, f"{key} {position}")
            lists.setdefault(kind, deque()).append(ref)
    return lists


def _with_missing_tags(
    turns: Sequence[Turn], lists: Mapping[MediaKind, Sequence[MediaRef]]
) -> list[Turn]:
    has_place: set[MediaKind | None] = set()
    for turn in turns:
        content = turn["content"]
        if isinstance(content, str):
            has_place |= {tag_kind(match) for match in TAG.finditer(content)}
        else:
            parts = (part for part in content if _own_source(part) is None)
            has_place |= {PART_KINDS.get(str(part.get("type"))) for part in parts}
    missing = [kind for kind, refs in lists.items() if kind not in has_place for _ in refs]
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if not missing or first is None:
        return list(turns)
    content = turns[first]["content"]
    if isinstance(content, str):
        content = "".join(f"{TAG_OF[kind]}\n" for kind in missing) + content
    else:
        content = [*({"type": kind} for kind in missing), *content]
    return [*turns[:first], {**turns[first], "content": content}, *turns[first + 1 :]]


def _place_part(
    part: Mapping[str, Any],
    number: int,
    folder: MediaFolder,
    lists: dict[MediaKind, deque[MediaRef]],
    counts: Mapping[MediaKind, int],
    media: list[MediaRef],
) -> dict[str, Any]:
    """Check one part; a medium's part gives its source away."""
    name = str(part.get("type", "text"))
    if name == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise RowError(f"message {number}: found a text part without text: {dict(part)!r:.60}")
        if match := TAG.search(text):
            raise RowError(
                f"message {number}: found {match.group()!r} in the text of a part; a medium among "
                "parts is a part of its own"
            )
        return {"type": "text", "text": text}
    if name not in PART_KINDS:
        raise RowError(
            f"message {number}: found a part of type {name!r}, expected 'text' or one of "
            f"{', '.join(PART_KINDS)}"
        )
    kind = PART_KINDS[name]
    if unknown := sorted(set(part) - {name, *SOURCE_KEYS, *PART_EXTRAS}):
        raise RowError(
            f"message {number}: found the key {unknown[0]!r} in a part of type {name!r}; sampling "
            "and reduction are set for the whole row, in 'media_options'"
        )
    source = _own_source(part)
    if source is not None:
        media.append(folder.ref(source, kind, f"message {number}"))
    elif kind is None:
        raise RowError(f"message {number}: found a media part without a source")
    else:
        media.append(_next(lists, kind, number, counts))
    return {"type": kind or "media"}


def _own_source(part: Mapping[str, Any]) -> object:
    """What a part names itself; None where it waits for one of the row's list."""
    value = part.get(str(part.get("type")))
    if value is not None:
        return value
    keys = {key: part[key] for key in SOURCE_KEYS if part.get(key) is not None}
    return keys or None


def _next(
    lists: dict[MediaKind, deque[MediaRef]],
    kind: MediaKind,
    number: int,
    counts: Mapping[MediaKind, int],
) -> MediaRef:
    if not lists.get(kind):
        raise RowError(
            f"message {number}: found one more {TAG_OF[kind]} or part of this kind than the row "
            f"has {kind}s ({counts.get(kind, 0)}); each needs an entry in the row's list of {kind}s"
        )
    return lists[kind].popleft()


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RowError(f"{where}: found content that is not base64 ({error})") from error
