"""Synthetic speakers of single words, from the speech synthesisers espeak-ng and flite.

The programs are needed only to make training data (Debian packages `espeak-ng`, `flite`);
what they said is kept in one file, so that a restarted run does not need them again.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from finetune.tiny.audio_data import DIGITS, SAMPLE_RATE, WORDS, Clip, Waveform, read_audio, trim

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
_FOREIGN_VOICES = ("de", "nl", "fr", "es", "it", "pl", "sv", "pt", "cs", "ru", "hi")
# What somebody says whose first language is another: sounds of espeak-ng that all these voices
# have, alternatives parted by "|" (a last, empty one: not said). "three" is never "tree".
_FOREIGN_SOUNDS = {
    "zero": "z|s 'i:|'i|'e r o|o:|ow",
    "one": "w|v 'a|'O n",
    "two": "t 'u|'u:",
    "three": "T|s|f r 'i|'i:",
    "four": "f 'o|'o:|'O r|",
    "five": "f 'aj v|f",
    "six": "s 'i k s",
    "seven": "s|s|z 'E|'e v|v|f @|e n",
    "eight": "'ej|'e: t",
    "nine": "n 'aj n",
    "yes": "j 'E|'e s",
    "no": "n 'o|'o:|'ow",
    "up": "'a p",
    "down": "d 'aw n",
    "left": "l 'E|'e f t",
    "right": "r 'aj t",
    "on": "'O|'o n",
    "off": "'O|'o f",
    "stop": "s|S t 'O|'o p",
    "go": "g 'o|'o:|'ow",
    "backward": "b 'E|'a k w|v a|o|@ r d|t",
    "bed": "b 'E|'e d|t",
    "bird": "b '@ r d|t",
    "cat": "k 'E|'a t",
    "dog": "d 'O|'o g|k",
    "follow": "f 'O|'o l o|o:|ow",
    "forward": "f 'O|'o r w|v a|o|@ r d|t",
    "happy": "h|x| 'E|'a p i",
    "house": "h|x| 'aw s",
    "learn": "l 'E|'@ r n",
    "marvin": "m 'a r v i n",
    "sheila": "S 'i|'i: l a|@",
    "tree": "t r 'i|'i:",
    "visual": "v 'i Z|z|S u a|@ l",
    "wow": "w|v 'aw",
}


def synthetic_clips(
    words: Sequence[str] = WORDS,
    *,
    takes_per_digit: int = 1500,
    takes_per_word: int = 300,
    seed: int = 0,
    cache: Path | None = None,
) -> list[Clip]:
    """Let many synthetic speakers say each word.

    Of eight takes one is spoken by flite, four by English voices of espeak-ng and three by
    its voices of other languages; accent, voice, pitch and pace are drawn anew for each.

    Args:
        words: What to say.
        takes_per_digit: How many speakers say each digit.
        takes_per_word: How many speakers say each other word.
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
    takes = [
        (word, speaking_command(rng, word, take))
        for word in words
        for take in range(takes_per_digit if word in DIGITS else takes_per_word)
    ]
    with ThreadPoolExecutor(4) as threads:  # most of a take is the start of a program
        spoken = threads.map(lambda take: _run(take[1]), takes)
        clips = [
            Clip(waveform, word, "voices")
            for (word, _), waveform in zip(takes, spoken, strict=True)
        ]
    if cache is not None:
        _save(clips, cache)
    return clips


def speaking_command(rng: np.random.Generator, word: str, take: int) -> list[str]:
    """Draw who says a word and how.

    Args:
        rng: Source of every choice but the synthesiser.
        word: One of `WORDS`.
        take: Number of the take, which chooses the synthesiser.

    Returns:
        A command that wants one more argument: the option for its output and a file.
    """
    if take % 8 == 0:
        settings = {
            "duration_stretch": rng.uniform(0.7, 1.5),
            "int_f0_target_mean": rng.uniform(80, 240),
            "int_f0_target_stddev": rng.uniform(5, 30),
        }
        command = ["flite", "-voice", str(rng.choice(_FLITE_VOICES)), "-t", word]
        for name, value in settings.items():
            command += ["--setf", f"{name}={value:.3f}"]
        return [*command, "-o"]
    foreign = take % 8 >= 5
    accent = rng.choice(_FOREIGN_VOICES if foreign else _ESPEAK_ACCENTS)
    voice = f"{accent}+{rng.choice(_ESPEAK_VARIANTS)}"
    speed, pitch = rng.integers(100, 220), rng.integers(5, 95)
    text = f"[[{foreign_sounds(rng, word)}]]" if foreign else word
    return ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), text, "-w"]


def foreign_sounds(rng: np.random.Generator, word: str) -> str:
    """Draw how a foreigner says an English word, in the sounds of espeak-ng."""
    return "".join(rng.choice(sound.split("|")) for sound in _FOREIGN_SOUNDS[word].split(" "))


def _run(command: Sequence[str]) -> Waveform:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        return trim(read_audio(path), threshold_db=-45.0)[:SAMPLE_RATE]


def _save(clips: Sequence[Clip], path: Path) -> None:
    samples = np.concatenate([c.waveform for c in clips])
    path.parent.mkdir(parents=True, exist_ok=True)
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
