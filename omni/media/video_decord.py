"""decord: the second frame reader, for those who have their pipelines on it.

The plan (indices and times) always comes from the PyAV probe; decord only decodes.
"""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from omni.errors import CorruptMediaError, MediaAccessError, UnsupportedMediaError
from omni.media.source import Source
from omni.media.video_pyav import Timeline

if TYPE_CHECKING:
    import decord


class DecordReader:
    """Frames of one video through decord.

    Args:
        source: the file.
        timeline: from the PyAV probe of the same file.

    Raises:
        MediaAccessError: if decord is not installed.
        UnsupportedMediaError: if the video is turned by a quarter, which decord garbles.
    """

    def __init__(self, source: Source, timeline: Timeline) -> None:
        try:
            import decord
        except ImportError as error:
            raise MediaAccessError(
                "video_backend='decord' needs the package decord; run 'pip install decord' (it has "
                "wheels for Linux and Windows on x86-64), or use video_backend='pyav'"
            ) from error
        if timeline.info.rotation % 180:
            raise UnsupportedMediaError(
                f"{source.name}: found a video turned by {timeline.info.rotation} degrees, which "
                "decord garbles; use video_backend='pyav'"
            )
        self._decord = decord
        self._source = source
        self._info = timeline.info
        self._can_seek = len(timeline.keyframes) > 0

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames at ascending `indices`.

        Raises:
            CorruptMediaError: if decord cannot open the file or decode one of them.
            UnsupportedMediaError: if decord counts other frames than there are.
        """
        self._decord.logging.set_level(self._decord.logging.QUIET)
        with self._source.open() as file:
            video = self._open(file)
            position = 0
            for number, index in enumerate(indices):
                try:
                    if self._can_seek:
                        video.seek_accurate(index)
                    else:
                        for _ in range(index - position):  # its skip_frames() drops the wrong ones
                            video.next()
                    frame = video.next().asnumpy()
                except (self._decord.DECORDError, RuntimeError, StopIteration) as error:
                    raise CorruptMediaError(
                        f"{self._source.name}: found {number} of {len(indices)} sampled frames, "
                        f"expected all: decord cannot decode frame {index} of "
                        f"{self._info.num_frames} ({_first_line(error)}); use "
                        "video_backend='pyav' or export the video again"
                    ) from error
                position = index + 1
                yield np.array(frame)

    def _open(self, file: io.BufferedIOBase) -> "decord.VideoReader":
        name, path = self._source.name, self._source.path
        try:
            video = self._decord.VideoReader(file if path is None else str(path), num_threads=1)
        except (self._decord.DECORDError, RuntimeError) as error:
            raise CorruptMediaError(
                f"{name}: decord cannot open the video ({_first_line(error)}); use "
                "video_backend='pyav'"
            ) from error
        if len(video) != self._info.num_frames:
            raise UnsupportedMediaError(
                f"{name}: decord counts {len(video)} frames, expected {self._info.num_frames}; use "
                "video_backend='pyav' for this file"
            )
        return video


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
