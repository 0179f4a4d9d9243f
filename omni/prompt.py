"""From chat messages to one string with media markers, and the media in marker order.

Messages are OpenAI or Hugging Face style. Each media part becomes a marker in plain text, since
chat templates differ in what they do with parts and agree on strings:

    image, page -> <image>      video -> <video>      audio -> <so_embedding>
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from omni.errors import RequestError
from omni.media import Audio, Document, Image, Video

Medium = Audio | Document | Image | Video
Message = Mapping[str, Any]
MediaKind = Literal["image", "video", "audio", "document"]
LoadMedia = Callable[..., Medium]

IMAGE_MARKER, VIDEO_MARKER, AUDIO_MARKER = "<image>", "<video>", "<so_embedding>"

# A marker, with or without delimiters around it: those that the writer put are never doubled.
MARKER = re.compile(
    r"<img>(?P<image_in><image>)</img>|(?P<image><image>)"
    r"|<so_start>(?P<audio_in><so_embedding>)<so_end>|(?P<audio><so_embedding>)"
    r"|(?P<video><video>)"
)

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
# What a template reads of a turn, and what says who it is from; others must be empty.
TURN_KEYS = ("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id")

PART_KINDS: dict[str, MediaKind | None] = {
    "media": None,  # any kind: its content decides
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "document": "document",
    "file": "document",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a document; it is rendered only when it is encoded."""

    document: Document
    index: int

    @property
    def name(self) -> str:
        """Document name and page number, counted from 1."""
        return f"{self.document.name} page {self.index + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A video's sound, placed after its frames."""

    video_name: str
    audio: Audio

    @property
    def name(self) -> str:
        """Video name and what it is."""
        return f"{self.video_name} sound"


MarkedMedium = Image | Video | Audio | Page | Track


def flatten_messages(
    messages: Sequence[Message], load: LoadMedia, *, audio_in_video: bool
) -> tuple[list[dict[str, Any]], list[MarkedMedium]]:
    """Turn content parts into strings with markers.

    Args:
        messages: Turns with ``role`` and ``content`` (a string or a list of parts).
        load: Opens a source: ``load(source, kind=...)``.
        audio_in_video: Place each video's sound track, where it has one, right after it.

    Returns:
        The turns with string content, and the media in the order of their markers.

    Raises:
        RequestError: A turn or part that is not understood.
    """
    flat: list[dict[str, Any]] = []
    media: list[MarkedMedium] = []
    for turn, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(
                f"Message {turn} is {message!r:.80}; expected a mapping with 'role' and 'content'."
            )
        role = _known_role(message, turn)
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = _flatten_parts(content, turn, load, media, audio_in_video)
        flat.append({**message, "role": role, "content": content or ""})
    return flat, media


def _known_role(message: Message, turn: int) -> str:
    """The role as templates write it; what they would leave out is refused."""
    role = ROLES.get(str(message["role"]))
    if role is None:
        raise RequestError(
            f"Message {turn} has the role {message['role']!r}; expected one of "
            f"{', '.join(map(repr, ROLES))}."
        )
    unread = [key for key in message if key not in TURN_KEYS and not _is_empty(message[key])]
    if unread:
        raise RequestError(
            f"Message {turn} has {', '.join(map(repr, unread))}, which nobody would read; expected "
            f"{', '.join(map(repr, TURN_KEYS))}. Media are parts of the content, such as "
            '{"type": "image", "image": "photo.png"}.'
        )
    return role


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Sized) and not len(value))


def _flatten_parts(
    parts: Sequence[Mapping[str, Any]],
    turn: int,
    load: LoadMedia,
    media: list[MarkedMedium],
    audio_in_video: bool,
) -> str:
    """Markers stand on lines of their own before the text that follows them."""
    pieces: list[str] = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind == "text":
            if "text" not in part:
                raise RequestError(
                    f"Message {turn} has a text part without 'text' (it has: "
                    f"{', '.join(map(repr, part))}); expected {{'type': 'text', 'text': ...}}."
                )
            pieces.append(str(part["text"]))
            continue
        if kind not in PART_KINDS:
            raise RequestError(
                f"Message {turn} has a content part of type {kind!r}; expected 'text' or one of "
                f"{', '.join(map(repr, PART_KINDS))}."
            )
        medium = load(_source(part, kind, turn), kind=PART_KINDS[kind])
        text, marked = mark(medium, audio_in_video=audio_in_video)
        if pieces and not pieces[-1].endswith("\n"):
            pieces.append("\n")
        pieces.append(text + "\n")
        media.extend(marked)
    return "".join(pieces).removesuffix("\n") if parts else ""


def mark(medium: Medium, *, audio_in_video: bool) -> tuple[str, list[MarkedMedium]]:
    """The marker text of one medium, and what its markers stand for."""
    if isinstance(medium, Document):
        pages = [Page(document=medium, index=i) for i in range(medium.num_pages)]
        if len(pages) == 1:
            return IMAGE_MARKER, list(pages)
        lines = [f"Page {i + 1} of {len(pages)}: {IMAGE_MARKER}" for i in range(len(pages))]
        return "\n".join(lines), list(pages)
    if isinstance(medium, Audio):
        return AUDIO_MARKER, [medium]
    if isinstance(medium, Image):
        return IMAGE_MARKER, [medium]
    sound = medium.audio() if audio_in_video else None
    if sound is None:
        return VIDEO_MARKER, [medium]
    return VIDEO_MARKER + AUDIO_MARKER, [medium, Track(video_name=medium.name, audio=sound)]


def _source(part: Mapping[str, Any], kind: str, turn: int) -> Any:
    """Where a part's bytes are, in any of the spellings of the two conventions."""
    if kind == "input_audio":
        audio = part.get("input_audio")
        if not isinstance(audio, Mapping) or "data" not in audio:
            raise RequestError(
                f"Message {turn}: input_audio needs {{'data': <base64>, 'format': ...}}."
            )
        return _decode(audio["data"], turn)
    value = part.get(kind)
    if isinstance(value, Mapping):
        value = value.get("url")
    for name in ("path", "url", "base64"):
        if value is None:
            value = part.get(name)
            if value is not None and name == "base64":
                return _decode(value, turn)
    if value is None:
        raise RequestError(
            f"Message {turn} has a {kind!r} part without a source; expected one of the keys "
            f"{kind!r}, 'path', 'url', 'base64'."
        )
    return value


def _decode(text: Any, turn: int) -> bytes:
    """Decode base64, text or bytes, with line breaks or without."""
    try:
        data = text.encode() if isinstance(text, str) else text
        return base64.b64decode(b"".join(data.split()), validate=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise RequestError(
            f"Message {turn} has data that are no base64 text ({error}); expected the bytes of a "
            "file, encoded."
        ) from error


def check_markers(text: str, media: Sequence[MarkedMedium]) -> list[re.Match[str]]:
    """Match the markers in a rendered prompt with the media.

    Args:
        text: The rendered prompt.
        media: What the markers stand for, in order.

    Returns:
        The markers' places.

    Raises:
        RequestError: Their number or kinds differ.
    """
    matches = list(MARKER.finditer(text))
    found = [marker_kind(match) for match in matches]
    expected = [_marker_of(medium) for medium in media]
    if found != expected:
        raise RequestError(
            f"The prompt has {len(found)} media marker(s) {_counts(found)} but there are "
            f"{len(expected)} media {_counts(expected)}, to be matched in this order. Write each "
            f"marker ({IMAGE_MARKER}, {VIDEO_MARKER}, {AUDIO_MARKER}) exactly once for its medium, "
            "or pass media as content parts and leave markers out of the text."
        )
    return matches


def marker_kind(match: re.Match[str]) -> str:
    """``image``, ``audio`` or ``video``."""
    return str(match.lastgroup).removesuffix("_in")


def _marker_of(medium: MarkedMedium) -> str:
    if isinstance(medium, Image | Page):
        return "image"
    return "video" if isinstance(medium, Video) else "audio"


def _counts(kinds: Sequence[str]) -> str:
    named = (f"{kinds.count(kind)} {kind}" for kind in ("image", "video", "audio"))
    return f"({', '.join(named)})"


def cut_text(
    text: str, start: int, end: int, tail: str, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, bool]]:
    """Cut ``text[start:end] + tail`` where the loss begins or ends.

    Args:
        text: The rendered prompt.
        start: First character.
        end: Behind the last one.
        tail: What follows it, in no span.
        spans: Characters that the loss covers.

    Yields:
        Each piece, to be tokenised on its own, and whether the loss covers it.
    """
    cuts = {start, end}
    for span in spans:
        cuts.update(edge for edge in span if start < edge < end)
    for left, right in list(pairwise(sorted(cuts))) or [(start, end)]:
        said = any(a <= left and right <= b and left < right for a, b in spans)
        yield text[left:right] + (tail if right == end else ""), said
