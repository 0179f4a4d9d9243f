"""A pool of augmented examples in memory, so that training does not wait for its data.

Making an example takes a few milliseconds of one core; using one several times costs nothing.
The pool is filled once, and after each step a few of its examples are replaced by new ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16
from torch import Tensor
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from encoders.audio.features import (
    HOP_LENGTH,
    MIN_CLIP_SAMPLES,
    SAMPLING_RATE,
    LogMel,
    Normalize,
)
from finetune.tiny.audio_data import (
    DIGITS,
    SILENCE,
    Clip,
    Waveform,
    augment,
    background,
    draw_words,
    group_by_label,
    word_sequence,
)

NUM_MEL_BINS = 80
# Closely cut clips hold little but a vowel, which normalising each bin takes away (ADR 0013).
NORMALIZE: Normalize = "all_features"
SOURCE_WEIGHTS = {"speech_commands": 0.45, "fsdd": 0.15, "voices": 0.4}

_SILENCE_SHARE = 0.04
SEQUENCE_SECONDS = 3.2  # with pauses, where the digits leave room


class Example(NamedTuple):
    """What one step of training sees of one clip.

    Attributes:
        features: Normalised log-mel features without the last, invalid frame.
        words: What is said; `(SILENCE,)` if nothing is.
    """

    features: Float16[Tensor, "frames mel"]
    words: tuple[str, ...]


def log_mel(waveform: Waveform, hop_length: int = HOP_LENGTH) -> Float16[Tensor, "frames mel"]:
    """Compute the features of one clip as the finished model sees them, valid frames only.

    Args:
        waveform: Shape (samples,), float32, 16 kHz; shorter than 0.1 s is padded.
        hop_length: Samples between frames; another than the default changes the pace of the
            speech and leaves its pitch.
    """
    samples = torch.from_numpy(np.ascontiguousarray(waveform))
    samples = torch.nn.functional.pad(samples, (0, max(MIN_CLIP_SAMPLES - len(samples), 0)))
    front_end = LogMel(NUM_MEL_BINS, hop_length=hop_length, normalize=NORMALIZE)
    return front_end(samples)[:-1].half()


def warp_frequencies(
    features: Float16[Tensor, "frames mel"], factor: float
) -> Float16[Tensor, "frames mel"]:
    """Move every frequency as another length of the vocal tract would; pitch and pace stay.

    Pitch stays because single harmonics are hardly seen by the mel bins.

    Args:
        features: Log-mel features of one clip.
        factor: A formant at 1 kHz comes to lie at so many kHz.
    """
    num_bins = features.shape[1]
    bins_per_mel = (num_bins + 1) / hertz_to_mel(SAMPLING_RATE / 2, mel_scale="slaney")
    centres = mel_to_hertz(np.arange(1, num_bins + 1) / bins_per_mel, mel_scale="slaney")
    sources = hertz_to_mel(centres / factor, mel_scale="slaney") * bins_per_mel - 1
    sources = np.clip(sources, 0, num_bins - 1)
    lower = np.minimum(sources.astype(np.int64), num_bins - 2)
    share = torch.from_numpy((sources - lower).astype(np.float32))
    warped = features[:, lower] * (1 - share) + features[:, lower + 1] * share
    return warped.half()


def to_batch(
    examples: Sequence[Example],
) -> tuple[Float[Tensor, "batch frames mel"], Bool[Tensor, "batch frames"]]:
    """Pad examples to the longest of them.

    Returns:
        Features, and a mask that is True where a frame is real.
    """
    lengths = torch.tensor([len(e.features) for e in examples])
    features = torch.nn.utils.rnn.pad_sequence([e.features for e in examples], batch_first=True)
    return features.float(), torch.arange(int(lengths.max())) < lengths[:, None]


def fixed_sequences(clips: Sequence[Clip], count: int, seed: int = 0) -> list[Example]:
    """Make the same digit sequences on every call, to measure on."""
    rng = np.random.default_rng(seed)
    by_label = group_by_label(clips)
    sequences = [word_sequence(rng, by_label) for _ in range(count)]
    return [Example(log_mel(waveform), tuple(words)) for waveform, words in sequences]


class ExamplePool:
    """Augmented examples of single words and of digit sequences, replaced bit by bit.

    Args:
        clips: Training clips, silence (noise) among them.
        seed: Seed of every choice.
        num_words: Single words that are held.
        num_sequences: Digit sequences that are held.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        seed: int,
        num_words: int = 4_000,
        num_sequences: int = 400,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._noises = [c.waveform for c in clips if c.label == SILENCE]
        self._draws = draw_words(self._rng, clips, SOURCE_WEIGHTS)
        # Each sequence is one speaker's as nearly as the data allows: one source.
        self._digits = [
            group_by_label([c for c in clips if c.source == source and c.label in DIGITS])
            for source in SOURCE_WEIGHTS
            if any(c.source == source and c.label in DIGITS for c in clips)
        ]
        self._words = [self._make_word() for _ in range(num_words)]
        self._sequences = [self._make_sequence() for _ in range(num_sequences)]

    def draw(self, count: int, *, sequences: bool = False) -> list[Example]:
        """Draw examples of about one length, each with parts of its features masked anew.

        Four times as many are drawn, with replacement, and a quarter of them by length kept:
        a batch of random lengths would be one fourth padding.
        """
        held = self._sequences if sequences else self._words
        drawn = [held[i] for i in self._rng.integers(len(held), size=4 * count)]
        drawn.sort(key=lambda example: len(example.features))
        quarter = count * int(self._rng.integers(4))
        drawn = drawn[quarter : quarter + count]
        return [Example(self._mask(e.features), e.words) for e in drawn]

    def refresh(self, count: int, *, sequences: bool = False) -> None:
        """Replace random examples by new ones."""
        held = self._sequences if sequences else self._words
        make = self._make_sequence if sequences else self._make_word
        for i in self._rng.integers(len(held), size=count):
            held[i] = make()

    def _make_word(self) -> Example:
        if self._rng.random() < _SILENCE_SHARE:
            return self._make_silence()
        clip = next(self._draws)
        waveform = augment(self._rng, clip.waveform, self._noises)
        return Example(self._warp(log_mel(waveform, self._hop_length())), (clip.label,))

    def _make_silence(self) -> Example:
        num_samples = int(self._rng.integers(4_000, 20_000))
        if self._rng.random() < 0.1:
            return Example(log_mel(np.zeros(num_samples, np.float32)), (SILENCE,))
        noise = background(self._rng, num_samples, self._noises)
        noise = noise * 10 ** (-self._rng.uniform(10, 50) / 20) / max(float(noise.std()), 1e-6)
        return Example(log_mel(noise.astype(np.float32)), (SILENCE,))

    def _make_sequence(self) -> Example:
        by_label = self._digits[self._rng.integers(len(self._digits))]
        waveform, words = word_sequence(self._rng, by_label)
        waveform = augment(self._rng, waveform, self._noises, room_seconds=SEQUENCE_SECONDS)
        return Example(self._warp(log_mel(waveform)), tuple(words))

    def _warp(self, features: Tensor) -> Tensor:
        """Another vocal tract, by up to 18 %, two times of three."""
        if self._rng.random() < 1 / 3:
            return features
        return warp_frequencies(features, 1.18 ** self._rng.uniform(-1, 1))

    def _hop_length(self) -> int:
        """Pace of 0.8 to 1.25, half of the time."""
        if self._rng.random() < 0.5:
            return HOP_LENGTH
        return int(HOP_LENGTH * self._rng.uniform(0.8, 1.25))

    def _mask(self, features: Tensor) -> Tensor:
        """Hide up to two bands of mel bins and two short stretches of time (SpecAugment)."""
        features = features.clone()
        num_frames, num_bins = features.shape
        for _ in range(2):
            width = int(self._rng.integers(0, 13))
            start = int(self._rng.integers(0, num_bins - width + 1))
            features[:, start : start + width] = 0
        for _ in range(2):
            width = int(self._rng.integers(0, max(num_frames // 8, 1) + 1))
            start = int(self._rng.integers(0, num_frames - width + 1))
            features[start : start + width] = 0
        return features
