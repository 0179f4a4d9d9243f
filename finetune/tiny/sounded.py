"""Clips with sound: shapes come one after the other, and while each is seen a word is said.

Like `scenes.py`, all of it is a function of a generator; facts say what a question may ask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator

from finetune.tiny.audio_data import SAMPLE_RATE, Clip, Waveform, record, speak, trim
from finetune.tiny.scenes import random_sequence

MAX_WORDS = 3
MARGIN = SAMPLE_RATE // 20  # samples at least, from a shape's coming or going to the word
SHORT_S, LONG_S = 1.0, 1.5  # for which a shape is seen: as long as its word needs
LOUDNESS = 0.1  # of each word, root mean square
AAC_FRAME = 1024  # samples: decoders give back whole frames


class Said(NamedTuple):
    """A shape of a clip, and the word that is said while it is seen."""

    colour: str
    shape: str
    word: str
    shown_s: tuple[float, float]
    """Seconds at which the shape comes and goes."""
    said_s: tuple[float, float]
    """Seconds at which the word begins and ends."""


def random_sounded(
    rng: Generator,
    words: Sequence[Clip],
    fps: int,
    noises: Sequence[Waveform] | None = None,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], Waveform, tuple[Said, ...]]:
    """Draw a clip of up to 5 s, and lay a word under each of its shapes.

    Args:
        rng: Source of randomness.
        words: To be said, in this order.
        fps: Frames a second; those of a showing are even in number.
        noises: Background recordings, for a track that is spoken and recorded otherwise each time;
            None says the words as they are, in silence.

    Returns:
        The frames, the sound track at 16 kHz, as long as the frames and in whole AAC frames, and
        what is said in order of time.
    """
    takes = [_take(rng, clip, is_varied=noises is not None) for clip in words]
    lengths = [int(fps * (SHORT_S if len(take) <= _room(SHORT_S) else LONG_S)) for take in takes]
    frames, showings = random_sequence(rng, lengths)
    track = np.zeros(-(-len(frames) * SAMPLE_RATE // fps // AAC_FRAME) * AAC_FRAME, np.float32)
    said = []
    for clip, take, shown in zip(words, takes, showings, strict=True):
        seconds = shown.first / fps, shown.end / fps
        spare = _room(seconds[1] - seconds[0]) - len(take)
        start = int(seconds[0] * SAMPLE_RATE) + MARGIN + int(rng.integers(spare + 1))
        track[start : start + len(take)] = take
        spoken = start / SAMPLE_RATE, (start + len(take)) / SAMPLE_RATE
        said.append(Said(shown.colour, shown.shape, clip.label, seconds, spoken))
    if noises is not None:
        track = record(rng, track, noises)
    return frames, track, tuple(said)


def _room(seconds: float) -> int:
    """Samples for a word while a shape is seen so long."""
    return int(seconds * SAMPLE_RATE) - 2 * MARGIN


def _take(rng: Generator, clip: Clip, *, is_varied: bool) -> Waveform:
    """The word without pauses, and its middle if it is too long."""
    take = trim(speak(rng, clip.waveform) if is_varied else clip.waveform)
    spare = max(len(take) - _room(LONG_S), 0)
    take = take[spare // 2 : len(take) - (spare - spare // 2)]
    return take * np.float32(LOUDNESS / max(float(np.sqrt(np.square(take).mean())), 1e-4))
