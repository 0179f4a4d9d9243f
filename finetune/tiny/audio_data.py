"""Spoken words for `omni-tiny`: real clips, the split by speaker, augmentation, word sequences.

A clip is mono float32 at 16 kHz. Nobody who speaks in the validation split is heard in
training: it holds one of the four speakers of the Free Spoken Digit Dataset and about an
eighth of the speakers of Speech Commands, chosen by a hash of their id. Synthetic voices
(`audio_voices.py`) are only ever trained on.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLE_RATE = 16_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("backward", "bed", "bird", "cat", "dog", "follow", "forward", "happy", "house"),
    *("learn", "marvin", "sheila", "tree", "visual", "wow"),
)
WORDS = DIGITS + COMMANDS  # the 35 words of Speech Commands
SILENCE = "_silence_"
LABELS = (*WORDS, SILENCE)

Split = Literal["train", "validation"]
Waveform = npt.NDArray[np.float32]

_VALIDATION_FSDD_SPEAKER = "yweweler"
_VALIDATION_PERCENT = 12
_DIGIT_SHARE = 0.45  # of what is drawn from a source that has other words too


class Clip(NamedTuple):
    """One recording of one word.

    Attributes:
        waveform: Shape (samples,), float32 in [-1, 1], 16 kHz.
        label: One of `LABELS`.
        source: `fsdd`, `speech_commands` or `voices`.
    """

    waveform: Waveform
    label: str
    source: str


def load_clips(data: Path, split: Split) -> list[Clip]:
    """Read the real recordings of one split.

    Args:
        data: The folder that holds `fsdd/` and `speech_commands/`.
        split: Which speakers to read.

    Returns:
        The clips in the order of the manifests.

    Raises:
        FileNotFoundError: If a manifest is missing.
    """
    clips = []
    for source in ("fsdd", "speech_commands"):
        manifest = data / source / "manifest.jsonl"
        if not manifest.is_file():
            raise FileNotFoundError(
                f"{manifest} is missing; --data must be the folder that holds "
                "fsdd/ and speech_commands/"
            )
        for line in manifest.read_text().splitlines():
            row = json.loads(line)
            if (split == "validation") == is_validation(row["speaker"] or row["id"]):
                clips.append(Clip(read_audio(data / source / row["file"]), row["label"], source))
    return clips


def is_validation(speaker: str) -> bool:
    """Say whether a speaker (for noise, which nobody speaks: the clip's id) is held out."""
    if speaker == _VALIDATION_FSDD_SPEAKER:
        return True
    if speaker in ("george", "jackson", "nicolas"):
        return False
    digest = hashlib.sha256(speaker.encode()).hexdigest()
    return int(digest, 16) % 100 < _VALIDATION_PERCENT


def read_audio(path: Path) -> Waveform:
    """Read a file as mono float32 at 16 kHz, shape (samples,)."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.ascontiguousarray(mono, dtype=np.float32)


def augment(
    rng: np.random.Generator,
    waveform: Waveform,
    noises: Sequence[Waveform] = (),
    *,
    room_seconds: float = 1.28,
) -> Waveform:
    """Record the same word again: another pace and pitch, another microphone, another room.

    1. cut the edges (mostly), closely or less so; the two sources differ most in them
    2. play 0.77 to 1.3 times as fast, which moves pitch and formants too
    3. filter: tilt, one resonance, telephone band, a short room
    4. place it at a random position between pauses
    5. add noise 5 to 40 dB below the word (mostly)
    6. record it at 8 kHz with 7 to 12 bits (sometimes), then set a random gain

    Args:
        rng: Source of every choice.
        waveform: Shape (samples,), 16 kHz.
        noises: Background recordings; coloured noise is used where there are none.
        room_seconds: Pauses make the result at most this long; what is longer gets none.

    Returns:
        The new waveform, shape (samples,), float32, within [-1, 1].
    """
    return record(rng, _place(rng, speak(rng, waveform), int(room_seconds * SAMPLE_RATE)), noises)


def speak(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Say the same word otherwise, in another room: steps 1 to 3 of `augment`."""
    if rng.random() < 0.75:
        waveform = trim(waveform, rng.uniform(-40, -24), margin=int(rng.integers(5)))
    speed = 1.3 ** rng.uniform(-1, 1)
    waveform = soxr.resample(waveform, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
    return _filter(rng, waveform)


def record(
    rng: np.random.Generator, waveform: Waveform, noises: Sequence[Waveform] = ()
) -> Waveform:
    """Record what is said otherwise, every sound at its time: steps 5 and 6 of `augment`."""
    if rng.random() < 0.7:
        noise = background(rng, len(waveform), noises)
        loudness = _rms(waveform) * 10 ** (-rng.uniform(5, 40) / 20)
        waveform = waveform + noise * (loudness / max(_rms(noise), 1e-6))
    if rng.random() < 0.25:
        waveform = _telephone(waveform, bits=rng.uniform(7, 12))
    peak = 10 ** (-rng.uniform(0, 26) / 20)
    return (waveform * (peak / max(float(np.abs(waveform).max()), 1e-4))).astype(np.float32)


def background(
    rng: np.random.Generator, num_samples: int, noises: Sequence[Waveform] = ()
) -> Waveform:
    """Make noise without speech: a piece of a recording, or noise of a random colour.

    Args:
        rng: Source of every choice.
        num_samples: Length of the result at 16 kHz.
        noises: Background recordings to choose from.

    Returns:
        Shape (num_samples,), float32, of no particular loudness.
    """
    if len(noises) and rng.random() < 0.7:
        noise = noises[int(rng.integers(len(noises)))]
        noise = np.tile(noise, -(-num_samples // len(noise)))
        return np.roll(noise, rng.integers(len(noise)))[:num_samples]
    spectrum = np.fft.rfft(rng.standard_normal(num_samples).astype(np.float32))
    colour = np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 1)  # 0 white, 0.5 pink, 1 brown
    return np.fft.irfft(spectrum * colour, num_samples).astype(np.float32)


def trim(waveform: Waveform, threshold_db: float = -32.0, margin: int = 4) -> Waveform:
    """Cut quiet edges: everything before the first and after the last loud 10 ms.

    Args:
        waveform: Shape (samples,), 16 kHz.
        threshold_db: Loud means above this, relative to the loudest 10 ms.
        margin: How many steps of 10 ms are left on either side.

    Returns:
        A view of the loud part with the margin around it; all of it when nothing is loud.
    """
    hop = SAMPLE_RATE // 100
    if len(waveform) < 4 * hop:
        return waveform
    steps = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    power = np.square(steps).mean(axis=1)
    loud = np.flatnonzero(power > max(power.max() * 10 ** (threshold_db / 10), 1e-9))
    if len(loud) == 0:
        return waveform
    return waveform[max(loud[0] - margin, 0) * hop : (loud[-1] + 1 + margin) * hop]


def word_sequence(
    rng: np.random.Generator,
    by_label: dict[str, list[Waveform]],
    *,
    min_words: int = 2,
    max_words: int = 4,
) -> tuple[Waveform, list[str]]:
    """Say several digits one after the other, with pauses of 0 to 0.25 s between them.

    Args:
        rng: Source of every choice.
        by_label: Recordings of each digit.
        min_words: Fewest digits.
        max_words: Most digits.

    Returns:
        The waveform, shape (samples,), and the digit words in order.
    """
    words = [str(w) for w in rng.choice(DIGITS, rng.integers(min_words, max_words + 1))]
    parts = []
    for word in words:
        takes = by_label[word]
        spoken = trim(takes[rng.integers(len(takes))])
        parts.append(spoken * (0.1 / max(_rms(spoken), 1e-4)))
        parts.append(np.zeros(rng.integers(0, SAMPLE_RATE // 4), np.float32))
    return np.concatenate(parts[:-1]), words


def group_by_label(clips: Sequence[Clip]) -> dict[str, list[Waveform]]:
    """Collect the waveforms of each label."""
    groups: dict[str, list[Waveform]] = {}
    for clip in clips:
        groups.setdefault(clip.label, []).append(clip.waveform)
    return groups


def draw_words(
    rng: np.random.Generator, clips: Sequence[Clip], weights: dict[str, float]
) -> Iterator[Clip]:
    """Draw clips without end: first a source by weight, then a label, then a take.

    Labels are drawn in proportion to the square root of how many takes they have, so that
    a word with nine recordings is heard often enough and not learned by heart; digits get
    nearly half of each source, for their few recordings have many speakers.

    Args:
        rng: Source of every choice.
        clips: What to draw from; silence is left out.
        weights: Share of each source that occurs in `clips`.

    Yields:
        One clip at a time.
    """
    shelf = sort_words(clips, weights)
    while True:
        yield draw_word(rng, shelf)


class WordShelf(NamedTuple):
    """Recordings of words, sorted so that one can be drawn as `draw_words` says."""

    sources: list[str]
    shares: npt.NDArray[np.float64]
    takes: dict[str, dict[str, list[Waveform]]]
    """By source and label."""
    odds: dict[str, npt.NDArray[np.float64]]
    """Of each source's labels."""


def sort_words(clips: Sequence[Clip], weights: dict[str, float]) -> WordShelf:
    """Sort clips to draw from; the arguments are those of `draw_words`."""
    clips = [clip for clip in clips if clip.label != SILENCE]
    sources = [s for s in weights if any(c.source == s for c in clips)]
    shares = np.array([weights[s] for s in sources])
    all_takes, all_odds = {}, {}
    for source in sources:
        takes = group_by_label([c for c in clips if c.source == source])
        odds = np.array([len(t) ** 0.5 for t in takes.values()])
        digits = np.array([label in DIGITS for label in takes])
        for group, share in ((digits, _DIGIT_SHARE), (~digits, 1 - _DIGIT_SHARE)):
            odds[group] *= share / max(odds[group].sum(), 1e-9)
        all_takes[source], all_odds[source] = takes, odds / odds.sum()
    return WordShelf(sources, shares / shares.sum(), all_takes, all_odds)


def draw_word(rng: np.random.Generator, shelf: WordShelf) -> Clip:
    """Draw one recording of a word."""
    source = shelf.sources[rng.choice(len(shelf.sources), p=shelf.shares)]
    takes = shelf.takes[source]
    label = list(takes)[rng.choice(len(takes), p=shelf.odds[source])]
    return Clip(takes[label][rng.integers(len(takes[label]))], label, source)


def _filter(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Microphone, telephone band and room in one multiplication of spectra."""
    room_samples = int(SAMPLE_RATE * 0.15)
    size = len(waveform) + room_samples
    spectrum = np.fft.rfft(waveform, size)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)) * SAMPLE_RATE / size, 50) / 1000)
    gain_db = rng.uniform(-3, 3) * octaves
    gain_db += rng.uniform(-8, 8) * np.exp(-np.square((octaves - rng.uniform(-3, 2.5)) / 0.7))
    if rng.random() < 0.5:  # sources at 8 kHz have nothing above 4 kHz
        gain_db[octaves > np.log2(rng.uniform(3.2, 4.0))] = -90
    spectrum *= 10 ** (gain_db / 20)
    if rng.random() < 0.4:
        decay = np.exp(-np.arange(room_samples) / (SAMPLE_RATE * rng.uniform(0.01, 0.05)))
        room = decay * rng.standard_normal(room_samples) * rng.uniform(0.02, 0.12)
        room[0] = 1.0
        spectrum *= np.fft.rfft(room, size)
    return np.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32)


def _place(rng: np.random.Generator, waveform: Waveform, room: int) -> Waveform:
    """Put what is said between random pauses, where there is room; nothing of it is cut."""
    if len(waveform) >= room or rng.random() < 0.5:  # both sources hold clips without any pause
        return waveform
    spare = rng.integers(0, room - len(waveform) + 1)
    before = rng.integers(0, spare + 1)
    return np.pad(waveform, (before, spare - before))


def _telephone(waveform: Waveform, bits: float) -> Waveform:
    """Record at 8 kHz with so many bits, of which the loudest sample needs all."""
    narrow = soxr.resample(waveform, SAMPLE_RATE, SAMPLE_RATE // 2)
    step = max(float(np.abs(narrow).max(initial=0)), 1e-4) * 2 ** (1 - bits)
    wide = soxr.resample(np.round(narrow / step) * step, SAMPLE_RATE // 2, SAMPLE_RATE)
    return np.resize(wide, len(waveform)).astype(np.float32)


def _rms(waveform: Waveform) -> float:
    return float(np.sqrt(np.square(waveform).mean() + 1e-12))
