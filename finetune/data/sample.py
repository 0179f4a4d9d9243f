"""One row of training data: a conversation, its media, its own options, and where it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from omni.errors import RequestError
from omni.prompt import MediaKind


class RowError(RequestError):
    """A row cannot be understood; the reader turns it into a `BadRow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a row stands.

    Attributes:
        file: The data file as the user named it.
        row: Counted from 1: the line of a JSONL file, the element of a JSON array, the row of an
            arrow file, the sample of a tar shard.
        key: Name of the sample in its shard; empty elsewhere.
    """

    file: str
    row: int
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}" + (f" ({self.key})" if self.key else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without a key that is empty."""
        return {"file": self.file, "row": self.row} | ({"key": self.key} if self.key else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be trained on.

    Attributes:
        origin: Where it stands.
        reason: What was found, what was expected, what to do.
    """

    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON: file, row, key where there is one, reason."""
        return {**self.origin.to_dict(), "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRef:
    """One medium that a row names; nothing of it has been opened.

    Attributes:
        source: What the media gateway opens: a path (of the data file's folder, where the row's was
            relative), an address, bytes, or a member of a tar shard.
        kind: What the row says that it is; None leaves it to the content.
    """

    source: str | os.PathLike[str] | bytes | Any
    kind: MediaKind | None


class Shown(NamedTuple):
    """A picture shows a stretch of the last answer, its letters evenly spread."""

    medium: int
    """Which of the row's pictures, counted from 0 through all media."""
    text: str
    left: float
    """Share of the width at which it starts."""
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation to learn from.

    Attributes:
        messages: Turns with ``role`` (system, user, assistant or tool), ``content`` and, of an
            assistant, ``reasoning_content`` and ``tool_calls``. Content is a string, whose tags
            ``<image>``, ``<video>``, ``<audio>`` and ``<document>`` stand for media, or a list of
            parts, whose media parts have only a type.
        media: What tags and media parts stand for, in the order of the conversation.
        learned: For each assistant turn, in order, whether its words count in the loss.
        tools: Function declarations.
        options: The fields of `omni.MediaOptions` that the row sets.
        shown: Which pictures show what of the last answer, in its order.
        origin: Where the row stands.
    """

    messages: tuple[Mapping[str, Any], ...]
    media: tuple[MediaRef, ...] = ()
    learned: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[Shown, ...] = ()
    origin: Origin
