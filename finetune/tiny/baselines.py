"""What the questions of `omni eval tiny` score without `omni-tiny`: programs and rules of others.

The best constant answer, the nearest training example in pixels or in a log-mel spectrogram,
tesseract (a program) and pocketsphinx (a Python package) answer the same files. The last two are
used where they are installed.
"""

import importlib.util
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from finetune.tiny import questions
from finetune.tiny.abilities import ABILITIES
from finetune.tiny.answers import conclusion
from finetune.tiny.audio_data import DIGITS, SAMPLE_RATE, WORDS, load_clips
from finetune.tiny.audio_pool import log_mel
from finetune.tiny.cases import Case
from finetune.tiny.evaluate import OtherScore, summarise
from finetune.tiny.score import COPIED, score_answer
from finetune.tiny.turns import Turn
from finetune.tiny.vision_data import PHOTO_CLASSES, cifar_arrays, mnist_arrays
from omni.errors import RequestError

SPOKEN = ("digit", "digit_commands", "word")
READ = ("line", "line_signs", "receipt_line", "band")
NAMED = ("name", "out_of_scope")  # judged by what is said about omni-tiny
SIDE = 32  # rows and columns of a picture or spectrogram that is compared
FOUND = ("page_title", "page_field", "page_cell", "receipt_total", "receipt_date")
# --psm: one line, one block, or what is found on a page
TESSERACT = dict.fromkeys(READ, "7") | {"band": "6"} | dict.fromkeys(FOUND, "4")
TIMEOUT_S = 30
LONGEST_DATE = 3  # words


class Baseline(NamedTuple):
    """Somebody else's way to answer.

    Attributes:
        name: As it stands in the table.
        abilities: What it is asked.
        answer: From an ability, its cases and the folder of the training data to the answers.
        missing: What has to be installed first, if it is not there.
    """

    name: str
    abilities: tuple[str, ...]
    answer: Callable[[str, Sequence[Case], Path], list[str]]
    missing: str | None = None


def baselines() -> list[Baseline]:
    """Return all baselines, also those whose program is missing."""
    asked = tuple(a for a, row in ABILITIES.items() if a not in NAMED and not row.is_error)
    tesseract = (
        None if shutil.which("tesseract") else "the program tesseract (apt install tesseract-ocr)"
    )
    sphinx = (
        None
        if importlib.util.find_spec("pocketsphinx")
        else "pocketsphinx (pip install 'omni-toolkit[baselines]')"
    )
    return [
        Baseline("best constant answer", asked, answer_constantly),
        Baseline("nearest example", ("object", "handwritten", *SPOKEN), answer_by_nearest),
        Baseline("tesseract", READ, read_with_tesseract, tesseract),
        Baseline("tesseract reads it", FOUND, find_with_tesseract, tesseract),
        Baseline("pocketsphinx", SPOKEN, hear_with_pocketsphinx, sphinx),
    ]


def measure(cases: dict[str, list[Case]], data: Path) -> Iterator[tuple[str, OtherScore]]:
    """Ask the baselines what the model was asked.

    Args:
        cases: From `finetune.tiny.cases.make_cases`.
        data: Folder of the training data.

    Yields:
        An ability and what a baseline scored there.
    """
    for baseline in baselines():
        if baseline.missing:
            continue
        for ability in (a for a in baseline.abilities if a in cases):
            asked = cases[ability]
            answers = baseline.answer(ability, asked, data)
            values = [
                score_answer(case.turns[-1], answer)
                for case, answer in zip(asked, answers, strict=True)
            ]
            score = summarise(ability, values, asked, [])
            yield ability, OtherScore(baseline.name, score.mean, score.low, score.high)


def answer_constantly(ability: str, cases: Sequence[Case], data: Path) -> list[str]:
    """Give every question the one of the true answers that is right most often."""
    answers = sorted({case.turns[-1].answer for case in cases})
    best = max(answers, key=lambda said: sum(score_answer(case.turns[-1], said) for case in cases))
    return [best] * len(cases)


def answer_by_nearest(ability: str, cases: Sequence[Case], data: Path) -> list[str]:
    """Name what the most similar training example shows or says, by squared differences."""
    make_key = _spectrogram if ability in SPOKEN else _pixels
    known, labels = _examples(ability, data)
    asked = torch.stack([make_key(case.sources[0]) for case in cases])
    nearest = torch.cdist(asked, known).argmin(1)
    return [labels[int(i)] for i in nearest]


def read_with_tesseract(ability: str, cases: Sequence[Case], data: Path) -> list[str]:
    """Read strips with tesseract and its English data (https://github.com/tesseract-ocr).

    Raises:
        RequestError: It fails, as without its data (tesseract-ocr-eng), or hangs.
    """
    command = ["tesseract", "stdin", "stdout", "--psm", TESSERACT[ability], "-l", "eng"]
    answers = []
    for case in cases:
        try:
            found = subprocess.run(
                command, input=case.sources[0], capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"tesseract did not read a strip in {TIMEOUT_S} s.") from error
        if found.returncode:
            raise RequestError(f"tesseract failed: {found.stderr.decode('utf-8', 'replace')}")
        lines = found.stdout.decode("utf-8", "replace").splitlines()
        answers.append("\n".join(line.strip() for line in lines if line.strip()))
    return answers


def find_with_tesseract(ability: str, cases: Sequence[Case], data: Path) -> list[str]:
    """Read pages with tesseract; whoever knew where to look would answer what the reading holds."""
    turns = [case.turns[-1] for case in cases]
    readings = read_with_tesseract(ability, cases, data)
    return [
        conclusion(turn.answer) if _holds(reading, turn) else ""
        for turn, reading in zip(turns, readings, strict=True)
    ]


def _holds(reading: str, turn: Turn) -> bool:
    """Whether an answer stands in a reading; amounts and dates in any form that is right."""
    if turn.task in COPIED:
        truth = re.escape(conclusion(turn.answer))
        return re.search(rf"(?<!\w){truth}(?!\w)", reading) is not None
    words = reading.split()
    spans = (words[i : i + n] for n in range(1, LONGEST_DATE + 1) for i in range(len(words)))
    return any(score_answer(turn, " ".join(span)) for span in spans)


def hear_with_pocketsphinx(ability: str, cases: Sequence[Case], data: Path) -> list[str]:
    """Recognise one word of a grammar with pocketsphinx and its model of US English."""
    from pocketsphinx import Decoder

    words = WORDS if ability == "word" else DIGITS
    decoder = Decoder(samprate=SAMPLE_RATE, lm=None, loglevel="FATAL")
    grammar = f"#JSGF V1.0; grammar words; public <word> = {' | '.join(words)};"
    decoder.add_jsgf_string("words", grammar)
    decoder.activate_search("words")
    answers = []
    for case in cases:
        pcm, _ = soundfile.read(io.BytesIO(case.sources[0]), dtype="int16")
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        answers.append(decoder.hyp().hypstr if decoder.hyp() else "")
    return answers


@cache
def _examples(ability: str, data: Path) -> tuple[Float[Tensor, "n values"], list[str]]:
    """Training examples of an ability's kind, and what they are."""
    if ability in SPOKEN:
        wanted = WORDS if ability == "word" else DIGITS
        clips = [clip for clip in load_clips(data, "train") if clip.label in wanted]
        keys = [_spectrogram_of(clip.waveform) for clip in clips]
        return torch.stack(keys), [clip.label for clip in clips]
    if ability == "handwritten":
        pictures, labels = mnist_arrays(data, "train")
        names = [questions.NUMBER_WORDS[int(label)] for label in labels]
    else:
        pictures, labels = cifar_arrays(data, "train")
        names = [PHOTO_CLASSES[int(label)] for label in labels]
    return torch.stack([_pixels_of(Image.fromarray(picture)) for picture in pictures]), names


def _pixels(source: bytes) -> Float[Tensor, " values"]:
    with Image.open(io.BytesIO(source)) as picture:
        return _pixels_of(picture)


def _pixels_of(picture: Image.Image) -> Float[Tensor, " values"]:
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small, np.float32).ravel() / 255)


def _spectrogram(source: bytes) -> Float[Tensor, " values"]:
    waveform, _ = soundfile.read(io.BytesIO(source), dtype="float32")
    return _spectrogram_of(waveform)


def _spectrogram_of(waveform: Float32[np.ndarray, " samples"]) -> Float[Tensor, " values"]:
    features = log_mel(waveform).float()[None, None]
    small = torch.nn.functional.interpolate(features, (SIDE, SIDE), mode="area")
    return small.flatten()
