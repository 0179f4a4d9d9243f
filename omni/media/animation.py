"""Animated pictures as videos: WebP, PNG and AVIF, which FFmpeg reads badly or not at all.

Pillow decodes them. Each frame says how long it is shown, so times are exact and rates vary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, cast

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from omni.media.image import PIL_FORMATS, open_picture, picture_pixels, pillow_errors
from omni.media.limits import MediaLimits, refuse_above
from omni.media.source import Source
from omni.media.video import Video, VideoInfo

FORMATS = ("WebP", "PNG", "AVIF")
# Browsers show frames that ask for less time than this for so long.
SHORTEST_MS, INSTEAD_MS = 11, 100


def load_animation(source: Source, limits: MediaLimits) -> Video | None:
    """Open a picture file as a video without sound; None if it holds a single frame.

    Args:
        source: A file of one of `FORMATS`.
        limits: Pixels of a frame and seconds apply.

    Raises:
        CorruptMediaError: A frame is damaged or missing.
        MediaLimitError: It is over the limits.
    """
    with open_picture(source, limits) as picture:
        codec = (picture.format or "picture").lower()
        numbers = _frame_numbers(picture)
        if len(numbers) < 2:
            return None
        picture.seek(numbers[0])
        height, width = picture_pixels(picture, source.name).shape[:2]
        times = [0.0]
        for number in numbers:
            picture.seek(number)
            picture.load()  # a WebP says how long a frame is shown when it has decoded it
            shown = float(picture.info.get("duration") or 0)
            times.append(times[-1] + (shown if shown >= SHORTEST_MS else INSTEAD_MS) / 1000)
            refuse_above(
                source.name, "seconds of video", times[-1], limits.max_video_seconds, "max_seconds"
            )
    *starts, total = times
    info = VideoInfo(
        width=width,
        height=height,
        fps=len(starts) / total,
        duration_s=total,
        codec=codec,
        rotation=0,
        has_audio=False,
        frame_times_s=np.array(starts),
    )
    return Video(name=source.name, info=info, reader=AnimationReader(source), limits=limits)


def _frame_numbers(picture: PIL.Image.Image) -> range:
    """Numbers of the frames; a PNG may begin with a picture for programs that do not animate."""
    first = 1 if getattr(picture, "default_image", False) else 0
    return range(first, getattr(picture, "n_frames", 1))


class AnimationReader:
    """Decodes frames of an animated picture.

    Args:
        source: A file that `load_animation` has opened.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames at ascending `indices`, over white.

        Raises:
            CorruptMediaError: One of them cannot be decoded.
        """
        with ExitStack() as opened:
            with pillow_errors(self.source.name):
                file = opened.enter_context(self.source.open())
                picture = opened.enter_context(
                    PIL.Image.open(cast(IO[bytes], file), formats=PIL_FORMATS)
                )
                numbers = _frame_numbers(picture)
            for index in indices:
                with pillow_errors(self.source.name):  # not while the caller has a frame
                    picture.seek(numbers[index])
                    pixels = picture_pixels(picture, self.source.name)
                yield pixels
