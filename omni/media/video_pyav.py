"""Videos through PyAV (FFmpeg): probing from the packets, frames by index."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from omni.errors import CorruptMediaError
from omni.media.container import INDEXED_DEMUXERS, demuxer_of, first_video_stream, open_container
from omni.media.limits import MAX_PACKETS_PER_SECOND, MediaLimits, refuse_above
from omni.media.source import Source
from omni.media.video import VideoInfo

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# These give no reliable presentation times: frame i is shown at i / rate.
UNTIMED_DEMUXERS = frozenset({"avi", "h264", "hevc", "mpegvideo", "m4v", "mjpeg", "obu"})
ELEMENTARY_DEMUXERS = UNTIMED_DEMUXERS - {"avi"}
MAX_DECODER_THREADS = 4  # each thread of FFmpeg holds a frame
MIN_SEEK_FRAMES = 8  # decoding fewer than this is cheaper than a seek
EMPTY_VOP_BYTES = 8  # MPEG-4 in AVI marks "no new picture" by packets this small


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Where the frames of a video are, found from its packets."""

    pts: np.ndarray | None
    """Int64 presentation times in ticks, ascending; None: frames are told apart by counting."""
    keyframes: np.ndarray
    """Int64 (K, 2): frame index of each keyframe, and the tick to seek to; empty: no seeking."""
    info: VideoInfo


def probe(source: Source, limits: MediaLimits) -> Timeline:
    """Read all packets of a video's first stream, and decode its first frame.

    Raises:
        CorruptMediaError: if there is no frame, no decoder, or the file ends early.
        MediaLimitError: if frames or duration are over the limits.
    """
    with open_container(source, limits) as container:
        stream = first_video_stream(container)
        if stream is None:
            raise CorruptMediaError(f"{source.name}: found no video stream, expected one")
        return _timeline(container, stream, source, limits)


def _timeline(
    container: "InputContainer", stream: "VideoStream", source: Source, limits: MediaLimits
) -> Timeline:
    name = source.name
    width, height = stream.codec_context.width, stream.codec_context.height
    refuse_above(
        name, f"pixels ({width}x{height})", width * height, limits.max_pixels, "max_pixels"
    )
    format_name = demuxer_of(container)
    has_audio = bool(container.streams.audio)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    if not 0 < rate <= MAX_PACKETS_PER_SECOND:
        rate = Fraction(25)
    announced = stream.frames if format_name == "mov" else 0
    time_base = stream.time_base or 1 / rate

    packets = _read_packets(container, stream, name, limits)
    if announced > packets.num_packets:
        raise CorruptMediaError(
            f"{name}: found {packets.num_packets} video frames, expected {announced}: the file "
            "ends early; copy it again"
        )
    untimed = format_name in UNTIMED_DEMUXERS
    must_count = (
        format_name in ELEMENTARY_DEMUXERS
        or (not untimed and not packets.timed)
        or (untimed and stream.codec_context.name == "mpeg4" and packets.has_tiny)
    )
    first = _first_frame(source, limits)
    pts: np.ndarray | None = None
    keyframes = np.empty((0, 2), dtype=np.int64)
    if must_count or untimed:
        total = _count_frames(source, limits) if must_count else packets.num_packets
        times = np.arange(total) / float(rate)
        duration = total / float(rate)
    else:
        pts = np.sort(packets.pts)
        total = len(pts)
        times = (pts - pts[0]) * float(time_base) if total else np.empty(0)
        duration = _duration(times, packets.last_duration * float(time_base), rate, time_base)
        if format_name in INDEXED_DEMUXERS:
            positions = np.searchsorted(pts, packets.keyframes[:, 0])
            keyframes = np.stack([positions, packets.keyframes[:, 1]], axis=1)
    if total == 0:
        raise CorruptMediaError(
            f"{name}: found a video stream with 0 frames, expected at least one"
        )
    refuse_above(name, "seconds of video", duration, limits.max_video_seconds, "max_seconds")
    rotation = first.rotation % 360 if first.rotation % 90 == 0 else 0
    turned = rotation in (90, 270)
    info = VideoInfo(
        width=first.height if turned else first.width,
        height=first.width if turned else first.height,
        fps=total / duration,
        duration_s=duration,
        codec=stream.codec_context.name,
        rotation=rotation,
        has_audio=has_audio,
        frame_times_s=times,
    )
    return Timeline(pts=pts, keyframes=keyframes, info=info)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packets:
    num_packets: int  # with data, whether shown or not
    timed: bool  # every one has its own presentation time
    has_tiny: bool
    pts: np.ndarray  # of shown packets from the first keyframe on, in order of decoding
    keyframes: np.ndarray  # (K, 2): pts, and the tick to seek to
    last_duration: int


def _read_packets(
    container: "InputContainer", stream: "VideoStream", name: str, limits: MediaLimits
) -> _Packets:
    pts: list[int] = []
    keyframes: list[tuple[int, int]] = []
    num_packets, timed, has_tiny, last = 0, True, False, (-(2**63), 0)
    max_packets = int(limits.max_video_seconds * MAX_PACKETS_PER_SECOND)
    is_vp8 = stream.codec_context.name == "vp8"
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        num_packets += 1
        refuse_above(name, "video packets", num_packets, max_packets, "max_seconds")
        has_tiny = has_tiny or packet.size < EMPTY_VOP_BYTES
        if packet.pts is None:
            timed = False
            continue
        if packet.is_keyframe:
            seek = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
            keyframes.append((packet.pts, seek))
        if not keyframes or packet.pts < keyframes[0][0]:
            continue  # before the first keyframe nothing can be decoded
        if packet.is_discard or (is_vp8 and not bytes(packet)[0] & 0x10):
            continue  # cut away by an edit list; or a VP8 reference that is never shown
        pts.append(packet.pts)
        last = max(last, (packet.pts, packet.duration or 0))
    timed = timed and len(set(pts)) == len(pts)
    timed = timed and stream.codec_context.field_order in (0, 1)  # else fields may come apart
    return _Packets(
        num_packets=num_packets,
        timed=timed,
        has_tiny=has_tiny,
        pts=np.array(pts, dtype=np.int64),
        keyframes=np.array(sorted(keyframes), dtype=np.int64).reshape(-1, 2),
        last_duration=last[1],
    )


def _duration(times: np.ndarray, last_s: float, rate: Fraction, time_base: Fraction) -> float:
    """Duration in seconds: exact for a constant rate, else up to the end of the last frame."""
    total = len(times)
    if total == 0:
        return 0.0
    span = float(times[-1])
    if abs(span - (total - 1) / rate) <= 2 * time_base + Fraction(1, 1000):
        return float(total / rate)
    return span + (last_s or span / max(total - 1, 1) or float(1 / rate))


def _first_frame(source: Source, limits: MediaLimits) -> "VideoFrame":
    with open_container(source, limits) as container:
        for frame in _decode(container, limits):
            return frame
    raise CorruptMediaError(
        f"{source.name}: found no video frame that can be decoded; export it again"
    )


def _count_frames(source: Source, limits: MediaLimits) -> int:
    """Count by decoding: the only way for streams whose packets are not one to a frame."""
    with open_container(source, limits) as container:
        return sum(1 for _ in _decode(container, limits))


def _decode(
    container: "InputContainer",
    limits: MediaLimits,
    seek: int | None = None,
    wanted_pts: frozenset[int] | None = None,
) -> Iterator["VideoFrame"]:
    """Decode frames in order of presentation, from the keyframe at tick `seek` or the start.

    With `wanted_pts`, frames at other times are left out where nothing refers to them.
    """
    stream = first_video_stream(container)
    assert stream is not None
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    if not stream.codec_context.is_open:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(MAX_DECODER_THREADS, os.cpu_count() or 1)
    if seek is not None:
        container.seek(seek, stream=stream, backward=True)
    for packet in container.demux(stream):
        if wanted_pts is not None and packet.size > 0:
            needed = packet.pts is None or packet.pts in wanted_pts
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()


class PyAVReader:
    """Frames of one video through PyAV.

    Args:
        source: the file.
        timeline: from `probe` of the same file.
        limits: `max_pixels` of one frame applies.
    """

    def __init__(self, source: Source, timeline: Timeline, limits: MediaLimits) -> None:
        self._source = source
        self._timeline = timeline
        self._limits = limits

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames at ascending `indices`, seeking over long gaps.

        Raises:
            CorruptMediaError: if one of them cannot be decoded.
        """
        num_given = 0
        with open_container(self._source, self._limits) as container:
            for run, seek in self._runs(indices):
                num_found = 0
                for pixels in self._read_run(container, run, seek):
                    num_found += 1
                    yield pixels
                num_given += num_found
                if num_found < len(run):
                    self._refuse_missing(run[num_found], num_given, len(indices))

    def _runs(self, indices: Sequence[int]) -> Iterator[tuple[list[int], int | None]]:
        """Split into runs that are decoded in one go, each with the tick to seek to first."""
        keyframes = self._timeline.keyframes
        run: list[int] = []
        seek: int | None = None
        previous = 0
        for index in indices:
            nearest = int(np.searchsorted(keyframes[:, 0], index, side="right")) - 1
            if nearest >= 0 and keyframes[nearest, 0] - previous >= MIN_SEEK_FRAMES:
                if run:
                    yield run, seek
                run, seek = [], int(keyframes[nearest, 1])
            run.append(index)
            previous = index
        if run:
            yield run, seek

    def _read_run(
        self, container: "InputContainer", run: Sequence[int], seek: int | None
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames of a run; fewer if the stream ends or skips one."""
        wanted = iter(run)
        target = next(wanted)
        pts = self._timeline.pts
        wanted_pts = None if pts is None else frozenset(pts[list(run)].tolist())
        for number, frame in enumerate(_decode(container, self._limits, seek, wanted_pts)):
            index = self._index(number, frame)
            if index < target:
                continue
            if index > target:
                if seek is not None and target == run[0]:  # landed too late: decode from the start
                    with open_container(self._source, self._limits) as fresh:
                        yield from self._read_run(fresh, run, None)
                return
            yield self._pixels(frame)
            following = next(wanted, None)
            if following is None:
                return
            target = following

    def _index(self, number: int, frame: "VideoFrame") -> int:
        """Index of a frame; -1 for one that is not shown."""
        pts = self._timeline.pts
        if pts is None:
            return number
        if frame.pts is None:
            return -1
        place = int(np.searchsorted(pts, frame.pts))
        return place if place == len(pts) or pts[place] == frame.pts else place - 1

    def _pixels(self, frame: "VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
        info = self._timeline.info
        size = (info.width, info.height) if info.rotation % 180 == 0 else (info.height, info.width)
        rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
        return np.ascontiguousarray(np.rot90(rgb, info.rotation // 90))

    def _refuse_missing(self, index: int, num_given: int, num_wanted: int) -> None:
        info = self._timeline.info
        raise CorruptMediaError(
            f"{self._source.name}: found {num_given} of {num_wanted} sampled frames, expected "
            f"all: frame {index} of {info.num_frames} ({info.frame_times_s[index]:.2f} s) cannot "
            "be decoded; the video is damaged or ends early, export it again"
        )
