"""Audio: any rate and channel count -> mono float32 at 16 kHz, in memory that does not grow.

A recording is decoded in blocks, mixed to one channel, resampled as a stream and written to a
spool (memory while small, then a temporary file); models read it back clip by clip.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from omni.errors import CorruptMediaError, RequestError, UnsupportedMediaError
from omni.media.limits import MediaLimits, refuse_above
from omni.media.source import Source
from omni.media.tensors import to_numpy, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

SAMPLING_RATE = 16_000  # Hz; what the audio towers were trained on
CLIP_SAMPLES = 480_000  # 30 s
BYTES_PER_SAMPLE = 4
MAX_BYTES_IN_MEMORY = 64 * 2**20  # of one recording: 17 minutes; more goes to a temporary file
BLOCK_VALUES = 2**18  # decoded at once, over all channels: 1 MiB
MIN_SOURCE_RATE, MAX_SOURCE_RATE = 1_000, 1_536_000  # Hz; outside, a header is damaged
MAX_CHANNELS = 64


class Audio:
    """One recording, mono float32 at 16 kHz, nominally within -1 to 1.

    Attributes:
        name: how messages call it.
        num_samples: exact length in samples at 16 kHz.
        source_sampling_rate: rate of the source in Hz.
        num_source_channels: channels of the source, before they were averaged.
    """

    sampling_rate: int = SAMPLING_RATE

    def __init__(
        self,
        *,
        name: str,
        spool: tempfile.SpooledTemporaryFile[bytes],
        num_samples: int,
        source_sampling_rate: int,
        num_source_channels: int,
    ) -> None:
        self.name = name
        self.num_samples = num_samples
        self.source_sampling_rate = source_sampling_rate
        self.num_source_channels = num_source_channels
        self._spool = spool
        self._lock = threading.Lock()  # readers share the spool's position
        weakref.finalize(self, spool.close)

    def __repr__(self) -> str:
        return f"Audio({self.name!r}, {self.duration_s:.2f} s)"

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.num_samples / SAMPLING_RATE

    def clips(self, num_samples: int = CLIP_SAMPLES) -> Iterator[Float[Tensor, " samples"]]:
        """Read the recording as consecutive clips without overlap.

        Args:
            num_samples: length of a clip in samples; the last one may be shorter.

        Raises:
            RequestError: if `num_samples` is below 1.
        """
        return map(to_tensor, self.blocks(num_samples))

    def blocks(self, num_samples: int) -> Iterator[Float[np.ndarray, " samples"]]:
        """The clips as arrays.

        Raises:
            RequestError: if `num_samples` is below 1.
        """
        if num_samples < 1:
            raise RequestError(f"found clips of {num_samples} samples, expected at least 1")
        for start in range(0, self.num_samples, num_samples):
            yield self._read(start, min(num_samples, self.num_samples - start))

    def waveform(self) -> Float[Tensor, " samples"]:
        """Return the whole recording; 230 MB an hour, so prefer `clips` for long ones."""
        return to_tensor(self._read(0, self.num_samples))

    def envelope(self, columns: int) -> Float[Tensor, "columns 2"]:
        """Lowest and highest sample of each of so many equal stretches, for drawing.

        Args:
            columns: how many; a recording with fewer samples gives one for each sample.

        Raises:
            RequestError: if `columns` is below 1.
        """
        if columns < 1:
            raise RequestError(f"found an envelope of {columns} columns, expected at least 1")
        columns = min(columns, self.num_samples)
        lowest = np.full(columns, np.inf, dtype=np.float32)
        highest = -lowest
        start = 0
        for clip in self.blocks(CLIP_SAMPLES):
            place = (np.arange(start, start + len(clip)) * columns) // self.num_samples
            np.minimum.at(lowest, place, clip)
            np.maximum.at(highest, place, clip)
            start += len(clip)
        return to_tensor(np.stack([lowest, highest], axis=1))

    def part(self, start_s: float, end_s: float) -> Audio:
        """A copy of the seconds from ``start_s`` to before ``end_s``.

        Raises:
            RequestError: if they hold no sample.
        """
        start, end = (min(round(s * SAMPLING_RATE), self.num_samples) for s in (start_s, end_s))
        if not 0 <= start < end:
            raise RequestError(
                f"{self.name}: found no sound from {start_s:g} to {end_s:g} s, expected a part of "
                f"0 to {self.duration_s:g} s"
            )
        # It lives as long as the recording, which closes it.
        spool = tempfile.SpooledTemporaryFile(max_size=MAX_BYTES_IN_MEMORY)  # noqa: SIM115
        for first in range(start, end, BLOCK_VALUES):
            _append(spool, self._read(first, min(BLOCK_VALUES, end - first)))
        return Audio(
            name=f"{self.name} {start_s:g}-{end_s:g} s",
            spool=spool,
            num_samples=end - start,
            source_sampling_rate=self.source_sampling_rate,
            num_source_channels=self.num_source_channels,
        )

    def _read(self, start: int, count: int) -> Float[np.ndarray, " samples"]:
        with self._lock:
            self._spool.seek(start * BYTES_PER_SAMPLE)
            data = self._spool.read(count * BYTES_PER_SAMPLE)
        return np.frombuffer(bytearray(data), dtype=np.float32)


def build_audio(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    *,
    name: str,
    limits: MediaLimits,
) -> Audio:
    """Mix, check, resample and spool decoded blocks.

    Args:
        blocks: float32 arrays (samples, channels), nominally within -1 to 1.
        sampling_rate: their rate in Hz.
        name: how messages call it.
        limits: `max_seconds` applies, while decoding.

    Raises:
        CorruptMediaError: for an impossible rate, no samples, or samples that are not finite.
        MediaLimitError: as soon as it is longer than the limits allow.
    """
    if not MIN_SOURCE_RATE <= sampling_rate <= MAX_SOURCE_RATE:
        raise CorruptMediaError(
            f"{name}: found a sampling rate of {sampling_rate} Hz, expected {MIN_SOURCE_RATE} to "
            f"{MAX_SOURCE_RATE}; the header is damaged or the rate was given wrong"
        )
    resampler = (
        soxr.ResampleStream(sampling_rate, SAMPLING_RATE, 1, dtype="float32", quality="VHQ")
        if sampling_rate != SAMPLING_RATE
        else None
    )
    with contextlib.ExitStack() as on_failure:
        spool = on_failure.enter_context(
            tempfile.SpooledTemporaryFile(max_size=MAX_BYTES_IN_MEMORY)
        )
        num_read = num_written = channels = 0
        for block in blocks:
            if len(block) == 0:
                continue
            channels = channels or block.shape[1]
            mono = _mix(block, num_read, sampling_rate, name)
            num_read += len(block)
            seconds = num_read / sampling_rate
            refuse_above(name, "seconds of audio", seconds, limits.max_audio_seconds, "max_seconds")
            num_written += _append(
                spool, mono if resampler is None else resampler.resample_chunk(mono)
            )
        if num_read == 0:
            raise CorruptMediaError(f"{name}: found no audio samples, expected at least one")
        if resampler is not None:
            last = resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)
            num_written += _append(spool, last)
        if num_written == 0:
            raise CorruptMediaError(
                f"{name}: found {num_read} samples at {sampling_rate} Hz, too few for one at 16 kHz"
            )
        on_failure.pop_all()
    return Audio(
        name=name,
        spool=spool,
        num_samples=num_written,
        source_sampling_rate=sampling_rate,
        num_source_channels=channels,
    )


def _mix(block: np.ndarray, start: int, sampling_rate: int, name: str) -> np.ndarray:
    """Average the channels of a block whose first sample is number `start` of the recording."""
    finite = np.isfinite(block)
    if not finite.all():
        second = (start + int(np.argmin(finite.all(axis=1)))) / sampling_rate
        raise CorruptMediaError(
            f"{name}: found a sample that is not finite at {second:.3f} s, expected numbers; "
            "repair the recording"
        )
    return np.ascontiguousarray(block.mean(axis=1, dtype=np.float32))


def _append(spool: tempfile.SpooledTemporaryFile[bytes], samples: np.ndarray) -> int:
    spool.write(samples.astype(np.float32, copy=False).tobytes())
    return len(samples)


def load_audio_file(
    source: Source, limits: MediaLimits, *, fallback: Callable[[], Audio] | None = None
) -> Audio:
    """Decode an audio file with libsndfile: WAV, FLAC, OGG, AIFF, AU, CAF.

    Args:
        source: the file.
        limits: `max_seconds` applies.
        fallback: called instead if libsndfile cannot open it (ADPCM in WAV, for example).

    Raises:
        CorruptMediaError: if it is damaged, ends early, is empty or has no usable rate.
        MediaLimitError: if it is longer than the limits allow.
    """
    with source.open() as handle:
        try:
            file = soundfile.SoundFile(_SeekableFile(handle))
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            if fallback is not None:
                return fallback()
            raise CorruptMediaError(
                f"{source.name}: the audio file cannot be opened ({error}); export it again"
            ) from error
        with file:
            if file.samplerate > 0:
                seconds = file.frames / file.samplerate
                refuse_above(
                    source.name,
                    "seconds of audio",
                    seconds,
                    limits.max_audio_seconds,
                    "max_seconds",
                )
            if file.channels > MAX_CHANNELS:
                raise CorruptMediaError(
                    f"{source.name}: found {file.channels} channels, expected at most "
                    f"{MAX_CHANNELS}; the header is damaged"
                )
            blocks = _soundfile_blocks(file, source.name)
            return build_audio(blocks, file.samplerate, name=source.name, limits=limits)


class _SeekableFile:
    """What libsndfile needs of a file; damaged files make it seek before the first byte.

    Args:
        file: the file to read.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = self._file.tell() if whence == io.SEEK_CUR else 0
        if whence == io.SEEK_END:
            origin = self._file.seek(0, io.SEEK_END)
        return self._file.seek(max(origin + offset, 0))


def _soundfile_blocks(file: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    num_read, expected = 0, file.frames
    while True:
        try:
            block = file.read(BLOCK_VALUES // file.channels, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise CorruptMediaError(
                f"{name}: audio decoding failed at {num_read / file.samplerate:.2f} s ({error}); "
                "export the file again"
            ) from error
        if len(block) == 0:
            break
        num_read += len(block)
        yield block
    if num_read < expected:
        raise CorruptMediaError(
            f"{name}: found {num_read} audio samples, expected {expected}: the file ends early; "
            "copy it again"
        )


def audio_from_array(
    array: np.ndarray | Tensor,
    sampling_rate: int | None,
    limits: MediaLimits,
    name: str = "<array>",
) -> Audio:
    """Take over a waveform held in an array.

    Args:
        array: (samples,) or (channels, samples); floats, nominally within -1 to 1, or int16.
        sampling_rate: in Hz.
        limits: `max_seconds` applies.
        name: how messages call it.

    Raises:
        RequestError: if `sampling_rate` is missing.
        UnsupportedMediaError: if shape or type is another.
        CorruptMediaError: if it is empty or not finite.
        MediaLimitError: if it is longer than the limits allow.
    """
    if sampling_rate is None:
        raise RequestError(
            f"{name}: found a waveform without its rate; pass sampling_rate=... in Hz, which "
            "omni.load_media(array, sampling_rate=...) takes: ask about what that returns"
        )
    values = to_numpy(array)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[0] > MAX_CHANNELS:
        raise UnsupportedMediaError(
            f"{name}: found a waveform of shape {tuple(array.shape)}, expected (samples,) or "
            f"(channels, samples) with at most {MAX_CHANNELS} channels; transpose it"
        )
    if not (np.issubdtype(values.dtype, np.floating) or values.dtype == np.int16):
        raise UnsupportedMediaError(
            f"{name}: found samples of type {values.dtype}, expected floats or int16; convert them"
        )
    scale = np.float32(1 / 32_768 if values.dtype == np.int16 else 1.0)
    step = BLOCK_VALUES // max(values.shape[0], 1)
    blocks = (
        values[:, start : start + step].astype(np.float32).T * scale
        for start in range(0, values.shape[1], step)
    )
    return build_audio(blocks, sampling_rate, name=name, limits=limits)
