"""Synthetic speakers of single words, from the speech synthesisers espeak-ng and flite.

The programs are needed only to make training data (Debian packages `espeak-ng`, `flite`);
what they said is kept in one file, so that a restarted run does not need them again.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.tiny.audio_data import SAMPLE_RATE, WORDS, Clip, Waveform, read_audio, trim

_ESPEAK_ACCENTS = (
    *("en-us", "en-us", "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp"),
    *("en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
)
_ESPEAK_VARIANTS = (
    *("adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda"),
    *("benjamin", "boris", "caleb", "david", "Denis", "Diogo", "ed", "edward", "edward2"),
    *("f1", "f2", "f3", "f4", "f5", "Gene", "Gene2", "grandma", "grandpa", "gustave"),
    *("Henrique", "Hugo", "iven", "iven2", "iven3", "iven4", "Jacky", "john", "kaukovalta"),
    *("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "Lee", "linda", "m1", "m2"),
    *("m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "Marco", "Mario", "max", "Michael"),
    *("michel", "miguel", "mike", "Mr", "Nguyen", "norbert", "Pablo", "paul", "pedro"),
    *("quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2", "steph3", "travis"),
    *("victor", "whisper", "whisperf", "zac", "anika", "RicishayMax", "RicishayMax2"),
)
_FLITE_VOICES = ("kal16", "awb", "rms", "slt")


def synthetic_clips(
    words: Sequence[str] = WORDS,
    *,
    takes_per_word: int = 260,
    seed: int = 0,
    cache: Path | None = None,
) -> list[Clip]:
    """Let many synthetic speakers say each word.

    One take in eight is spoken by flite, the others by espeak-ng; accent, voice, pitch and
    pace are drawn anew for each.

    Args:
        words: What to say.
        takes_per_word: How many speakers say each word.
        seed: Seed of the choice of speakers.
        cache: File (.npz) to read the clips from if it exists, and else to keep them in.

    Returns:
        Clips of source `voices`, word by word.

    Raises:
        FileNotFoundError: If nothing is cached and a synthesiser is not installed.
    """
    if cache is not None and cache.is_file():
        return _load(cache)
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"the speech synthesiser {program} is not installed; install the Debian "
                f"packages espeak-ng and flite, or train without synthetic voices"
            )
    rng = np.random.default_rng(seed)
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        for word in words:
            for take in range(takes_per_word):
                say = _say_flite if take % 8 == 0 else _say_espeak
                spoken = trim(say(rng, word, path), threshold_db=-45.0)
                clips.append(Clip(spoken[:SAMPLE_RATE], word, "voices"))
    if cache is not None:
        _save(clips, cache)
    return clips


def _say_espeak(rng: np.random.Generator, word: str, path: Path) -> Waveform:
    voice = f"{rng.choice(_ESPEAK_ACCENTS)}+{rng.choice(_ESPEAK_VARIANTS)}"
    speed, pitch = rng.integers(110, 200), rng.integers(15, 85)
    options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path)]
    subprocess.run(["espeak-ng", *options, word], check=True, capture_output=True)
    return read_audio(path)


def _say_flite(rng: np.random.Generator, word: str, path: Path) -> Waveform:
    settings = {
        "duration_stretch": rng.uniform(0.75, 1.5),
        "int_f0_target_mean": rng.uniform(85, 220),
        "int_f0_target_stddev": rng.uniform(5, 30),
    }
    options = ["-voice", str(rng.choice(_FLITE_VOICES))]
    for name, value in settings.items():
        options += ["--setf", f"{name}={value:.3f}"]
    command = ["flite", *options, "-t", word, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return read_audio(path)


def _save(clips: Sequence[Clip], path: Path) -> None:
    samples = np.concatenate([c.waveform for c in clips])
    np.savez(
        path,
        samples=np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16),
        lengths=np.array([len(c.waveform) for c in clips]),
        labels=np.array([c.label for c in clips]),
    )


def _load(path: Path) -> list[Clip]:
    with np.load(path) as stored:
        samples = stored["samples"].astype(np.float32) / 32767
        parts = np.split(samples, np.cumsum(stored["lengths"])[:-1])
        return [
            Clip(part, str(label), "voices")
            for part, label in zip(parts, stored["labels"], strict=True)
        ]
