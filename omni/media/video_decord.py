"""decord: the second frame reader, for those who have their pipelines on it.

The plan (indices and times) always comes from the PyAV probe; decord only decodes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from omni.errors import CorruptMediaError, MediaAccessError, UnsupportedMediaError
from omni.media.source import Source
from omni.media.video import VideoInfo


class DecordReader:
    """Frames of one video through decord.

    Args:
        source: the file.
        info: from the PyAV probe of the same file.

    Raises:
        MediaAccessError: if decord is not installed.
    """

    def __init__(self, source: Source, info: VideoInfo) -> None:
        try:
            import decord
        except ImportError as error:
            raise MediaAccessError(
                "video_backend='decord' needs the package decord; run 'pip install decord' (it "
                "has wheels for Linux and Windows on x86-64), or use video_backend='pyav'"
            ) from error
        self._decord = decord
        self._source = source
        self._info = info

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Yield the frames at ascending `indices`.

        Raises:
            CorruptMediaError: if decord cannot open the file or decode one of them.
            UnsupportedMediaError: if decord counts other frames than there are.
        """
        name, info = self._source.name, self._info
        self._decord.logging.set_level(self._decord.logging.QUIET)
        with self._source.open() as file:
            path = self._source.path
            try:
                video = self._decord.VideoReader(file if path is None else str(path), num_threads=1)
                total = len(video)
            except (self._decord.DECORDError, RuntimeError) as error:
                raise CorruptMediaError(
                    f"{name}: decord cannot open the video ({_first_line(error)}); use "
                    "video_backend='pyav'"
                ) from error
            if total != info.num_frames:
                raise UnsupportedMediaError(
                    f"{name}: decord counts {total} frames, expected {info.num_frames}; use "
                    "video_backend='pyav' for this file"
                )
            for number, index in enumerate(indices):
                try:
                    video.seek_accurate(index)
                    frame = video.next().asnumpy()
                except (self._decord.DECORDError, RuntimeError, StopIteration) as error:
                    raise CorruptMediaError(
                        f"{name}: found {number} of {len(indices)} sampled frames, expected all: "
                        f"frame {index} of {total} cannot be decoded ({_first_line(error)}); the "
                        "video is damaged or ends early, export it again"
                    ) from error
                yield torch.from_numpy(self._upright(frame))

    def _upright(self, frame: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(frame, self._info.rotation // 90))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
