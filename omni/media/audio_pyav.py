"""Audio tracks of videos and of audio files that libsndfile does not read, through PyAV."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from omni.errors import CorruptMediaError
from omni.media.audio import MAX_CHANNELS, Audio, build_audio
from omni.media.container import INDEXED_DEMUXERS, demuxer_of, open_container
from omni.media.limits import MediaLimits
from omni.media.source import Source

if TYPE_CHECKING:
    from av.container import InputContainer

# Streams cut from a broadcast begin in the middle of a packet, and old MP3 files end with tags.
MAX_DAMAGED_PACKETS, MAX_DAMAGED_SHARE = 2, 0.01


def load_audio_track(source: Source, limits: MediaLimits) -> Audio:
    """Decode the first audio stream of any container.

    Raises:
        CorruptMediaError: if there is none, or it is damaged, empty or not finite.
        MediaLimitError: if it is longer than the limits allow.
    """
    with open_container(source, limits) as container:
        if not container.streams.audio:
            raise CorruptMediaError(f"{source.name}: found no audio stream, expected one")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise CorruptMediaError(f"{source.name}: found an audio stream without a known codec")
        rate = stream.codec_context.sample_rate or 0
        blocks = _audio_blocks(container, source.name)
        return build_audio(blocks, rate, name=source.name, limits=limits)


def _audio_blocks(container: "InputContainer", name: str) -> Iterator[np.ndarray]:
    from av import InvalidDataError

    shape: tuple[int, int] | None = None
    num_packets = num_damaged = 0
    for packet in container.demux(audio=0):
        num_packets += 1
        try:
            frames = packet.decode()
        except InvalidDataError:
            num_damaged += 1
            continue
        for frame in frames:
            channels = frame.layout.nb_channels
            found = (frame.sample_rate, channels)
            shape = shape or found
            if found != shape or not 0 < channels <= MAX_CHANNELS:
                raise CorruptMediaError(
                    f"{name}: found audio of {found[0]} Hz with {found[1]} channels after "
                    f"{shape[0]} Hz with {shape[1]}, expected one format throughout; export it "
                    "again"
                )
            yield _float_samples(frame.to_ndarray(), channels, frame.format.is_planar)
    is_stream = demuxer_of(container) not in INDEXED_DEMUXERS
    if num_damaged > (MAX_DAMAGED_PACKETS + MAX_DAMAGED_SHARE * num_packets if is_stream else 0):
        raise CorruptMediaError(
            f"{name}: found {num_damaged} of {num_packets} audio packets damaged, expected whole "
            "ones; export it again"
        )
    if num_damaged:
        warnings.warn(
            f"{name}: left out {num_damaged} damaged audio packets of {num_packets}", stacklevel=2
        )


def _float_samples(values: np.ndarray, channels: int, is_planar: bool) -> np.ndarray:
    """Samples of any FFmpeg type as float32 (samples, channels), full scale at 1."""
    shaped = values.T if is_planar else values.reshape(-1, channels)
    if shaped.dtype == np.uint8:
        return (shaped.astype(np.float32) - 128) / 128
    if np.issubdtype(shaped.dtype, np.signedinteger):
        return (shaped / -float(np.iinfo(shaped.dtype).min)).astype(np.float32)
    return shaped.astype(np.float32)
