"""Video: known in full from its packets, decoded only where it is sampled.

1. Probing reads the container's packets, not the pixels: frame count, times, size, rotation.
2. `plan_frames` chooses which frames a model sees (a pure function of count and duration).
3. A `FrameReader` (PyAV or decord) decodes those frames one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from omni.errors import CorruptMediaError, RequestError, UnsupportedMediaError
from omni.media.audio import SAMPLING_RATE, Audio
from omni.media.image import bytes_from_values
from omni.media.limits import MediaLimits, refuse_above
from omni.media.tensors import to_numpy, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

# floor(duration * fps) must not lose a frame to a container which rounds times to milliseconds
FRAME_COUNT_SLACK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """Which frames of a video are sampled."""

    indices: tuple[int, ...]
    """Positions in the source, in order of presentation, ascending."""
    timestamps_s: tuple[float, ...]
    """True time of each sampled frame in seconds after the first frame of the source."""
    source_fps: float
    """Frames a second of the source (the mean, where the rate varies)."""
    duration_s: float
    """Duration of the source in seconds."""

    @property
    def num_frames(self) -> int:
        """Number of sampled frames."""
        return len(self.indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What probing finds out about a video."""

    width: int
    """Width in pixels as shown, that is, after rotation."""
    height: int
    """Height in pixels as shown, that is, after rotation."""
    fps: float
    """Frames a second (the mean, where the rate varies)."""
    duration_s: float
    codec: str
    """Codec in the container, such as "h264"; "raw" for an array."""
    rotation: int
    """Degrees by which frames are turned counter-clockwise before they are shown: 0, 90, 180 or "
    "270."""
    has_audio: bool
    frame_times_s: np.ndarray
    """Float64 seconds of each frame after the first, ascending."""

    @property
    def num_frames(self) -> int:
        """Exact number of frames."""
        return len(self.frame_times_s)


@runtime_checkable
class FrameReader(Protocol):
    """Decodes frames of one video."""

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames at ascending `indices`, one by one.

        Raises:
            CorruptMediaError: if one of them cannot be decoded.
        """
        ...


class Video:
    """One video: its facts, a plan of frames, the frames of a plan, and its audio track.

    Attributes:
        name: how messages call it.
        info: what probing found.
    """

    def __init__(
        self,
        *,
        name: str,
        info: VideoInfo,
        reader: FrameReader,
        limits: MediaLimits,
        load_audio: Callable[[], Audio | None] | None = None,
    ) -> None:
        self.name = name
        self.info = info
        self._reader = reader
        self._limits = limits
        self._load_audio = load_audio

    def __repr__(self) -> str:
        info = self.info
        return (
            f"Video({self.name!r}, {info.width}x{info.height}, {info.num_frames} frames, "
            f"{info.fps:.3f} fps, {info.duration_s:.2f} s, {info.codec})"
        )

    @property
    def width(self) -> int:
        """Width in pixels, as shown."""
        return self.info.width

    @property
    def height(self) -> int:
        """Height in pixels, as shown."""
        return self.info.height

    @property
    def num_frames(self) -> int:
        """Exact number of frames in the source."""
        return self.info.num_frames

    @property
    def fps(self) -> float:
        """Frames a second (the mean, where the rate varies)."""
        return self.info.fps

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.info.duration_s

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio track."""
        return self.info.has_audio

    def plan(self, fps: float | None = None, num_frames: int | None = None) -> FramePlan:
        """Choose frames, evenly from the first to the last; no decoding.

        Args:
            fps: at most this many frames a second, in Hz.
            num_frames: at most this many frames. With neither, all frames.

        Raises:
            RequestError: if an argument is not above 0.
            MediaLimitError: if more than `max_frames` of the limits would be sampled.
        """
        info = self.info
        indices = plan_frames(info.num_frames, info.duration_s, fps=fps, num_frames=num_frames)
        refuse_above(
            f"{self.name} (pass num_frames or a lower fps)",
            "sampled frames",
            len(indices),
            self._limits.max_frames,
            "max_frames",
        )
        return FramePlan(
            indices=indices,
            timestamps_s=tuple(float(info.frame_times_s[i]) for i in indices),
            source_fps=info.fps,
            duration_s=info.duration_s,
        )

    def frames(self, plan: FramePlan) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Decode the frames of a plan, holding one decoded frame at a time.

        Args:
            plan: from `plan` of this video.

        Returns:
            RGB frames, 0-255, upright, in the order of `plan.indices`.

        Raises:
            RequestError: if the plan names frames that the video does not have.
            CorruptMediaError: if decoding ends early; names the frames found and expected.
        """
        return (to_tensor(frame) for frame in self.decode(plan.indices))

    def decode(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Decode the frames at ascending `indices` as arrays; see `frames`."""
        if any(b <= a for a, b in itertools.pairwise(indices)):
            raise RequestError(
                f"{self.name}: found frame indices out of order, expected ascending ones"
            )
        if indices and (indices[0] < 0 or indices[-1] >= self.num_frames):
            raise RequestError(
                f"{self.name}: found frame indices {indices[0]} to {indices[-1]}, expected them "
                f"within 0 to {self.num_frames - 1}; make the plan with this video's plan()"
            )
        return self._reader.read(indices)

    def part(self, start_s: float, end_s: float) -> Video:
        """The frames from ``start_s`` to before ``end_s`` as a video whose times start at 0.

        Its sound is that of these seconds; none where the track ends before them.

        Raises:
            RequestError: if there are none.
        """
        times = self.info.frame_times_s
        first, last = (int(i) for i in np.searchsorted(times, (start_s, end_s)))
        if first == last:
            raise RequestError(
                f"{self.name}: found no frame from {start_s:g} to {end_s:g} s; choose longer parts"
            )
        info = replace(
            self.info,
            frame_times_s=times[first:last] - times[first],
            duration_s=min(end_s, max(self.duration_s, float(times[-1]))) - start_s,
        )

        def load_audio() -> Audio | None:
            track = self.audio()
            if track is None or round(start_s * SAMPLING_RATE) >= track.num_samples:
                return None
            return track.part(start_s, end_s)

        return Video(
            name=f"{self.name} {start_s:g}-{end_s:g} s",
            info=info,
            reader=_LaterFrames(self._reader, first),
            limits=self._limits,
            load_audio=load_audio if self.has_audio else None,
        )

    def audio(self) -> Audio | None:
        """Decode the first audio track; None if there is none.

        Raises:
            CorruptMediaError: if the track is damaged.
            MediaLimitError: if it is longer than the limits allow.
        """
        return self._load_audio() if self._load_audio is not None else None


class _LaterFrames:
    """Frames of a video that starts within another one."""

    def __init__(self, reader: FrameReader, first: int) -> None:
        self._reader = reader
        self._first = first

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        return self._reader.read([self._first + index for index in indices])


def plan_frames(
    total: int, duration_s: float, *, fps: float | None = None, num_frames: int | None = None
) -> tuple[int, ...]:
    """Choose frame indices by the rule of the released model's loader.

    Args:
        total: frames in the source, at least 1.
        duration_s: duration of the source in seconds.
        fps: at most `floor(duration_s * fps)` frames.
        num_frames: at most this many frames.

    Returns:
        Whole parts of an even division of 0 to `total` - 1; all frames if none must go.

    Raises:
        RequestError: if `fps` or `num_frames` is not above 0 and finite.
    """
    count = total
    if num_frames is not None:
        if num_frames < 1:
            raise RequestError(f"found num_frames={num_frames}, expected at least 1")
        count = min(count, num_frames)
    if fps is not None:
        if not (fps > 0 and math.isfinite(fps)):
            raise RequestError(f"found fps={fps}, expected a rate above 0 Hz")
        count = min(count, math.floor(duration_s * fps + FRAME_COUNT_SLACK))
    count = max(count, 1)
    if count == total:
        return tuple(range(total))
    return tuple(int(i) for i in np.linspace(0, total - 1, count).astype(np.int64))


class ArrayReader:
    """Frames which are in memory already.

    Args:
        frames: (F, H, W, 3), uint8 or another type that `bytes_from_values` scales.
        name: how messages call it.
    """

    def __init__(self, frames: np.ndarray, name: str) -> None:
        self._frames = frames
        self._name = name

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield copies of the frames at `indices`."""
        for index in indices:
            yield np.array(bytes_from_values(self._frames[index], self._name))


def video_from_array(
    array: np.ndarray | Tensor, fps: float | None, limits: MediaLimits, name: str = "<array>"
) -> Video:
    """Take over a video held in an array.

    Args:
        array: (F, H, W, 3) or (F, 3, H, W); pixel types as for images.
        fps: frames a second, in Hz.
        limits: pixels of one frame and seconds apply.
        name: how messages call it.

    Raises:
        RequestError: if `fps` is missing or not above 0.
        UnsupportedMediaError: if shape or type is another.
        CorruptMediaError: if there are no frames.
        MediaLimitError: if it is over the limits.
    """
    values = to_numpy(array)
    if values.ndim == 4 and values.shape[3] != 3 and values.shape[1] == 3:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[3] != 3:
        raise UnsupportedMediaError(
            f"{name}: found an array of shape {tuple(array.shape)}, expected a video (frames, H, "
            "W, 3)"
        )
    if fps is None or not (fps > 0 and math.isfinite(fps)):
        raise RequestError(
            f"{name}: found a video array with fps={fps}; pass its frame rate as fps=..., "
            "which omni.load_media(array, fps=...) takes: ask about what that returns"
        )
    total, height, width, _ = values.shape
    if total * height * width == 0:
        raise CorruptMediaError(f"{name}: found {total} frames of {width}x{height}, which is empty")
    refuse_above(
        name, f"pixels ({width}x{height})", width * height, limits.max_pixels, "max_pixels"
    )
    refuse_above(name, "seconds of video", total / fps, limits.max_video_seconds, "max_seconds")
    info = VideoInfo(
        width=width,
        height=height,
        fps=float(fps),
        duration_s=total / fps,
        codec="raw",
        rotation=0,
        has_audio=False,
        frame_times_s=np.arange(total) / fps,
    )
    bytes_from_values(values[0], name)  # a wrong type is refused now, not while the model runs
    return Video(name=name, info=info, reader=ArrayReader(values, name), limits=limits)
