"""Items cut into parts that are asked about one by one: pages of documents, stretches of time."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from omni.errors import RequestError
from omni.media import Audio, Document, Image, Media, Video

SHORTEST_CHUNK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of an item.

    Attributes:
        page: Number of a page, from 1.
        last_page: Number of the last one, of several.
        start_s: First second of a stretch.
        end_s: Where it ends.
    """

    page: int | None = None
    last_page: int | None = None
    start_s: float | None = None
    end_s: float | None = None

    def to(self, last: "Span") -> "Span":
        """From the start of this part to the end of a later one."""
        return replace(self, last_page=last.last_page or last.page, end_s=last.end_s)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        if self.last_page is not None:
            return {"page": self.page, "last_page": self.last_page}
        if self.page is not None:
            return {"page": self.page}
        return {"start_s": self.start_s, "end_s": self.end_s}

    def label(self) -> str:
        """As people read it: ``0:02:00-0:03:00``, ``page 4``, ``pages 4-7``."""
        if self.last_page is not None:
            return f"pages {self.page}-{self.last_page}"
        if self.page is not None:
            return f"page {self.page}"
        return f"{_clock(self.start_s or 0.0)}-{_clock(self.end_s or 0.0)}"

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "Span | None":
        """Read what `to_dict` wrote; None stays None, the whole item."""
        return None if values is None else cls(**values)


def _clock(seconds: float) -> str:
    whole, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(whole), 60)
    shown = f"{rest:04.1f}".removesuffix(".0")
    return f"{hours}:{minutes:02}:{shown}"


def find_spans(media: Media, *, per_page: bool, chunk_s: float | None) -> list[Span | None]:
    """The parts of one medium, in order.

    Args:
        media: What was opened.
        per_page: Cut documents into pages.
        chunk_s: Cut recordings and videos every so many seconds; the last part may be shorter.

    Returns:
        Spans, or None alone for a medium that is asked about as a whole.
    """
    if per_page and isinstance(media, Document):
        return [Span(page=number) for number in range(1, media.num_pages + 1)]
    if chunk_s is None or not isinstance(media, Audio | Video) or media.duration_s <= chunk_s:
        return [None]
    times = media.info.frame_times_s if isinstance(media, Video) else None
    whole = media.duration_s if times is None else max(media.duration_s, float(times[-1]) + 1e-3)
    starts = [index * chunk_s for index in range(math.ceil(whole / chunk_s))]
    if times is not None:  # a stretch without a frame belongs to the one before
        edges = pairwise(np.searchsorted(times, [*starts, math.inf]))
        starts = [start for start, (a, b) in zip(starts, edges, strict=True) if a < b]
    ends = [*starts[1:], math.ceil(whole * 1000) / 1000]
    return [Span(start_s=a, end_s=b) for a, b in zip(starts, ends, strict=True)]


def cut(media: Media, span: Span | None) -> Media:
    """The part of a medium that a span names.

    Raises:
        RequestError: There is no such part.
    """
    if span is None:
        return media
    if span.page is not None:
        assert isinstance(media, Document)
        return OnePage(media, span.page - 1)
    assert isinstance(media, Audio | Video)
    assert span.start_s is not None
    assert span.end_s is not None
    return media.part(span.start_s, span.end_s)


class OnePage(Document):
    """One page of a document, as a document.

    Args:
        document: The whole.
        index: Position of the page, from 0.
    """

    def __init__(self, document: Document, index: int) -> None:
        self.document = document
        self.index = index
        self.name = f"{document.name} page {index + 1}"
        self.num_pages = 1

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of the page in points."""
        self._check(index)
        return self.document.page_size_points(self.index)

    def render(self, index: int, dpi: float = 144.0) -> Image:
        """Render the page."""
        self._check(index, dpi)
        return self.document.render(self.index, dpi)


def parse_seconds(text: str) -> float:
    """Read a length of time such as ``60``, ``60s``, ``2min`` or ``1h``.

    Raises:
        RequestError: It is none, or below one second.
    """
    units = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text.strip()[len(number) :].strip() or "s"
    try:
        seconds = float(number) * units[unit]
    except (ValueError, KeyError):
        seconds = math.nan
    check_chunk(seconds, repr(text))
    return seconds


def check_chunk(seconds: float, shown: str) -> None:
    """Refuse a length that is no usable one.

    Raises:
        RequestError: It is not finite, or below one second.
    """
    if not (math.isfinite(seconds) and seconds >= SHORTEST_CHUNK_S):
        raise RequestError(f"A chunk of {shown} was asked for; expected 1 s or more, such as 60s.")
