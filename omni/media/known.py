"""Media whose facts are known from an earlier time: opened only when they are looked at.

    facts = describe(decoder.open(path))     # JSON: sizes, times, lengths
    medium = recall(decoder, path, facts)    # plans like the file, and has not touched it

What planning asks is in the facts. Pixels, sound, frames and pages come from the decoder when they
are asked for, and then a file that has gone or is damaged raises what opening it raises.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from omni.media.audio import Audio
from omni.media.document import DEFAULT_DPI, Document
from omni.media.gateway import Media
from omni.media.image import Image
from omni.media.isolated import Decoder, RemoteDocument
from omni.media.video import Video, VideoInfo


def describe(media: Media) -> dict[str, Any]:
    """What planning asks about a medium, as JSON.

    Args:
        media: An opened one.

    Raises:
        MediaError: A page of a document cannot be measured.
    """
    if isinstance(media, Image):
        return {"kind": "image", "size": [media.height, media.width]}
    if isinstance(media, Video):
        info = asdict(media.info) | {"frame_times_s": media.info.frame_times_s.tolist()}
        return {"kind": "video", "info": info}
    if isinstance(media, Document):
        pages = [media.page_size_points(index) for index in range(media.num_pages)]
        return {"kind": "document", "pages": pages}
    return {
        "kind": "audio",
        "num_samples": media.num_samples,
        "sampling_rate": media.source_sampling_rate,
        "channels": media.num_source_channels,
    }


def recall(decoder: Decoder, path: str, facts: dict[str, Any]) -> Media:
    """The medium that `describe` described.

    Args:
        decoder: Opens it when it is looked at.
        path: The file, unchanged since.
        facts: From `describe`.
    """

    @cache
    def opened() -> Any:
        return decoder.open(path)

    if facts["kind"] == "image":
        return LaterImage(path, facts["size"], opened)
    if facts["kind"] == "audio":
        return LaterAudio(path, facts, opened)
    if facts["kind"] == "document":
        return KnownDocument(decoder, path, path, facts["pages"])
    times = np.array(facts["info"]["frame_times_s"], dtype=np.float64)
    return decoder.video(path, path, VideoInfo(**facts["info"] | {"frame_times_s": times}))


class LaterImage(Image):
    """A picture of known size, whose pixels are read when they are asked for.

    Args:
        name: How messages call it.
        size: Height and width in pixels.
        opened: Opens it.
    """

    __slots__ = ("opened", "size")
    opened: Callable[[], Image]
    size: list[int]

    def __init__(self, name: str, size: list[int], opened: Callable[[], Image]) -> None:
        for field, value in (("name", name), ("size", size), ("opened", opened)):
            object.__setattr__(self, field, value)  # its base is frozen

    @property
    def values(self) -> UInt8[np.ndarray, "height width 3"]:
        """RGB, 0-255."""
        return self.opened().values

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.size[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.size[1])


class LaterAudio(Audio):
    """A recording of known length, whose sound is read when it is asked for.

    Args:
        name: How messages call it.
        facts: From `describe`.
        opened: Opens it.
    """

    def __init__(self, name: str, facts: dict[str, Any], opened: Callable[[], Audio]) -> None:
        self.name = name
        self.num_samples = facts["num_samples"]
        self.source_sampling_rate = facts["sampling_rate"]
        self.num_source_channels = facts["channels"]
        self.opened = opened

    def _read(self, start: int, count: int) -> Float[np.ndarray, " samples"]:
        return self.opened()._read(start, count)


class KnownDocument(RemoteDocument):
    """A document whose pages need not be measured again.

    Args:
        decoder: Renders its pages.
        path: The document.
        name: How messages call it.
        pages: Width and height of each page in points.
    """

    def __init__(self, decoder: Decoder, path: str, name: str, pages: list[list[float]]) -> None:
        super().__init__(decoder, path, name, len(pages))
        self.sizes = pages

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of a page in points."""
        self._check(index, DEFAULT_DPI)
        width, height = self.sizes[index]
        return width, height
