"""Media known by shape alone: planning may ask for sizes and lengths, decoding anything fails."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from omni.media import Audio, Document, Image, MediaLimits, Video, VideoInfo
from omni.prompt import Page


class NoReader:
    """A frame reader that must not be used."""

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        pytest.fail(f"planning decoded frames {indices}")


class SheetOfPaper(Document):
    """A document of one page whose size is known; rendering fails."""

    def __init__(self, width_pt: float, height_pt: float) -> None:
        self.name, self.num_pages = "paper.pdf", 1
        self.size_pt = (width_pt, height_pt)

    def page_size_points(self, index: int) -> tuple[float, float]:
        return self.size_pt

    def render(self, index: int, dpi: float = 144) -> Any:
        pytest.fail(f"planning rendered page {index}")


def picture(height: int, width: int) -> Image:
    """A picture of any size in three bytes."""
    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    return Image(values=np.broadcast_to(pixel, (height, width, 3)), name="picture")


def page(width_pt: float, height_pt: float) -> Page:
    """One page, in points."""
    return Page(document=SheetOfPaper(width_pt, height_pt), index=0)


def video(num_frames: int, fps: float, height: int, width: int) -> Video:
    """A video of a steady rate."""
    info = VideoInfo(
        width=width,
        height=height,
        fps=fps,
        duration_s=num_frames / fps,
        codec="none",
        rotation=0,
        has_audio=False,
        frame_times_s=np.arange(num_frames) / fps,
    )
    return Video(name="video", info=info, reader=NoReader(), limits=MediaLimits())


def recording(seconds: float) -> Audio:
    """A recording whose samples do not exist."""
    return Audio(
        name="recording",
        spool=tempfile.SpooledTemporaryFile(),
        num_samples=max(round(seconds * 16_000), 1),
        source_sampling_rate=16_000,
        num_source_channels=1,
    )
