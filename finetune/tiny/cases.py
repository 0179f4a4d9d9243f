"""The questions of `omni eval tiny`, about what was held out of training: files, and what to ask.

The wording of each question is drawn anew from the committed patterns, with a fixed seed.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image as Picture

from finetune.tiny.abilities import ABILITIES
from finetune.tiny.audio_data import DIGITS, SAMPLE_RATE, SILENCE, Clip
from finetune.tiny.fonts import find_fonts
from finetune.tiny.page_cases import count_cases, document_cases, receipt_cases
from finetune.tiny.receipts import receipt_lines
from finetune.tiny.subjects import Subject, Subjects
from finetune.tiny.turns import Turn, text_turn, turns_about, which_turn
from finetune.tiny.vision_data import cifar_arrays, mnist_arrays
from omni.media import Audio, Image

logger = logging.getLogger(__name__)

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
EVS: Mapping[str, Any] = {"reduction": {"video": "evs(0.5)"}}
# The best of the reducers with a rate and without training; docs/token-reduction.md compares them.
QUARTER: Mapping[str, Any] = {"reduction": {"image": "merge(0.75)"}}
SOUND: Mapping[str, Any] = {"audio_in_video": True}
# Rows from which the questions come that should not be refused: all that it claims to answer.
IN_SCOPE = (
    *("digit", "word", "digits", "which", "object", "handwritten", "line", "receipt_line", "band"),
    *("still", "count", "position", "attribute", "direction", "colour", "order", "times", "when"),
    *("sounded", "page_title", "page_field", "page_cell", "page_count", "document"),
    *("receipt_total", "receipt_date", "name"),
)


class Case(NamedTuple):
    """One conversation whose last turn is judged."""

    sources: list[bytes]
    turns: list[Turn]
    options: Mapping[str, Any] = NO_OPTIONS
    """Of `Assistant.chat_batch`, such as `reduction`; the same for all cases of an ability."""


def as_file(subject: Subject) -> bytes:
    """Return a subject's medium as people send it: PNG, WAV or MP4."""
    buffer = io.BytesIO()
    if isinstance(subject.medium, Image):
        Picture.fromarray(subject.medium.pixels.numpy()).save(buffer, "PNG")
    elif isinstance(subject.medium, Audio):
        samples = subject.medium.waveform().numpy()
        soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    else:
        assert subject.encoded is not None
        return subject.encoded
    return buffer.getvalue()


def make_cases(
    data: Path, limit: int | None, seed: int = 11, abilities: Sequence[str] | None = None
) -> dict[str, list[Case]]:
    """Make the questions of every ability from the validation split.

    Args:
        data: Folder of the training data.
        limit: Most questions an ability; None asks about everything that is held out.
        seed: Seed of wordings and of what is drawn.
        abilities: Keys of `ABILITIES` to make; all by default.
    """
    subjects = Subjects(data, "validation")
    drawn = limit or 500  # of what is drawn, there is no end
    clips = max(1, drawn // 2)

    def rng(name: str) -> np.random.Generator:
        return np.random.default_rng([seed, *name.encode()])

    def about(
        name: str, found: Iterator[Subject], wanted: str, options: Mapping[str, Any] = NO_OPTIONS
    ) -> list[Case]:
        return [
            Case([as_file(s)], turns_about(rng(f"{name}{i}"), s, wanted=wanted), options)
            for i, s in enumerate(found)
        ]

    def many(name: str, task: str, count: int = drawn) -> Iterator[Subject]:
        source = rng(name)
        return (subjects.draw(task, source) for _ in range(count))

    def chosen(name: str, total: int) -> list[int]:
        return [int(i) for i in rng(name).permutation(total)[:limit]]

    def recordings(name: str, fits: Callable[[Clip], bool]) -> Iterator[Subject]:
        clips = [clip for clip in subjects.clips if fits(clip)]
        return (subjects.word(rng(name), clips[i]) for i in chosen(name, len(clips)))

    def pictures(name: str, total: int, draw: Callable[[Any, int], Subject]) -> Iterator[Subject]:
        return (draw(rng(name), i) for i in chosen(name, total))

    def dialogues(name: str, kind: str, tasks: Sequence[str] = ()) -> list[Case]:
        """Two different questions about a subject: of two tasks, or of any that suit it."""
        cases = []
        for i, subject in enumerate(many(name, kind, clips)):
            source = rng(f"{name}{i}")
            if tasks:
                order = source.permutation(tasks)
                turns = [turns_about(source, subject, wanted=str(t))[0] for t in order]
            else:
                turns = turns_about(source, subject, count=2)
            cases.append(Case([as_file(subject)], turns))
        return cases

    def scenes(
        name: str,
        draw: Callable[[np.random.Generator], Subject],
        wanted: Sequence[str],
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> list[Case]:
        """Questions of some tasks, one a scene or page; those without an answer are passed over."""
        cases: list[Case] = []
        source = rng(name)
        while len(cases) < clips:
            subject = draw(source)
            asked = turns_about(source, subject, count=99)
            turn = next((turn for turn in asked if turn.task in wanted), None)
            if turn is not None:
                cases.append(Case([as_file(subject)], [turn], options))
        return cases

    def pairs(name: str) -> list[Case]:
        """Pairs of recordings by unseen speakers, of which one says the word."""
        source = rng(name)
        spoken = [clip for clip in subjects.clips if clip.label != SILENCE]
        cases = []
        for _ in range(clips):
            first, second = (spoken[int(i)] for i in source.choice(len(spoken), 2, replace=False))
            while second.label == first.label:
                second = spoken[int(source.integers(len(spoken)))]
            both = [subjects.word(source, clip) for clip in (first, second)]
            asked = which_turn(source, (first.label, second.label))
            cases.append(Case([as_file(s) for s in both], [asked]))
        return cases

    def photos(options: Mapping[str, Any] = NO_OPTIONS) -> list[Case]:
        total = len(cifar_arrays(data, "validation")[1])
        return about("object", pictures("object", total, subjects.photo), "object", options)

    def receipts(options: Mapping[str, Any] = NO_OPTIONS) -> list[Case]:
        total = len(receipt_lines(data, "validation"))
        lines = pictures("receipt_line", total, lambda _, i: subjects.receipt_line(i))
        return about("receipt_line", lines, "line", options)

    def signs() -> list[Case]:
        """Lines in faces that only one of the held-out families has; none if it is missing."""
        try:
            fonts = find_fonts("signs")
        except FileNotFoundError as error:
            logger.warning("%s is left out: %s", ABILITIES["line_signs"].name, error)
            return []
        source = rng("line_signs")
        drawn_lines = (subjects.printed_line(source, fonts) for _ in range(clips))
        return about("line_signs", drawn_lines, "line")

    def stills(options: Mapping[str, Any] = NO_OPTIONS) -> list[Case]:
        return about("still", many("still", "still"), "shape_colour", options)

    def moving(task: str, options: Mapping[str, Any] = NO_OPTIONS) -> list[Case]:
        return about(task, many(task, "clip", clips), task, options)

    def alone(cases: list[Case]) -> list[Case]:
        return [case._replace(turns=case.turns[-1:]) for case in cases]

    def in_scope() -> list[Case]:
        """Some questions of each row, judged by whether they are refused."""
        share = -(-min(drawn, 200) // len(IN_SCOPE))
        return [
            case._replace(turns=[case.turns[-1]._replace(task="refused")], options=SOUND)
            for row in make_cases(data, 2 * share, seed, IN_SCOPE).values()  # half as many clips
            for case in row[:share]
        ]

    def files(found: Iterator[tuple[bytes, Turn]]) -> list[Case]:
        return [Case([source], [turn]) for source, turn in found]

    makers: dict[str, Callable[[], list[Case]]] = {
        "digit": lambda: about("digit", recordings("digit", lambda c: c.label in DIGITS), "digit"),
        "digit_commands": lambda: about(
            "digit_commands",
            recordings("digit_commands", lambda c: c.label in DIGITS and _is_command(c)),
            "digit",
        ),
        "word": lambda: about("word", recordings("word", _is_command), "word"),
        "digits": lambda: about("digits", many("digits", "digits", min(drawn, 200)), "digits"),
        "object": photos,
        "handwritten": lambda: about(
            "handwritten",
            pictures("handwritten", len(mnist_arrays(data, "validation")[1]), subjects.handwritten),
            "handwritten",
        ),
        "line": lambda: about("line", many("line", "line"), "line"),
        "line_signs": signs,
        "receipt_line": receipts,
        "band": lambda: about("band", many("band", "band"), "line"),
        "direction": lambda: moving("direction"),
        "colour": lambda: moving("colour"),
        "shape": lambda: about("shape", many("shape", "clip", clips), "shape"),
        "dialogue": lambda: dialogues("dialogue", "clip"),
        "dialogue_alone": lambda: alone(dialogues("dialogue", "clip")),
        "direction_evs": lambda: moving("direction", EVS),
        "colour_evs": lambda: moving("colour", EVS),
        "still": stills,
        "dialogue_still": lambda: dialogues("dialogue_still", "still", ("colour", "shape")),
        "dialogue_still_alone": lambda: alone(
            dialogues("dialogue_still", "still", ("colour", "shape"))
        ),
        "object_quarter": lambda: photos(QUARTER),
        "still_quarter": lambda: stills(QUARTER),
        "receipt_line_quarter": lambda: receipts(QUARTER),
        "count": lambda: scenes("count", subjects.scene, ("count",)),
        "position": lambda: scenes("position", subjects.scene, ("side", "corner")),
        "attribute": lambda: scenes("attribute", subjects.scene, ("colour", "shape")),
        "order": lambda: scenes("order", subjects.events, ("side",)),
        "times": lambda: scenes("times", subjects.events, ("count",)),
        "when": lambda: scenes("when", subjects.events, ("when",)),
        "sounded": lambda: scenes("sounded", subjects.sounded, ("word", "shape_colour"), SOUND),
        "which": lambda: pairs("which"),
        "page_title": lambda: scenes("page_title", subjects.page, ("title",)),
        "page_field": lambda: scenes("page_field", subjects.page, ("field",)),
        "page_cell": lambda: scenes("page_cell", subjects.page, ("cell",)),
        "page_large": lambda: scenes(
            "page_large", partial(subjects.page, large=True), ("field", "cell")
        ),
        "page_second": lambda: dialogues("page_second", "page"),
        "page_second_alone": lambda: alone(dialogues("page_second", "page")),
        "page_count": lambda: files(count_cases(rng("page_count"), subjects, clips)),
        "document": lambda: files(document_cases(rng("document"), subjects, clips)),
        "receipt_total": lambda: files(receipt_cases(rng("total"), data, "total", limit)),
        "receipt_date": lambda: files(receipt_cases(rng("date"), data, "date", limit)),
        "name": lambda: [
            Case([], [text_turn(rng(f"name{i}"), ("name", "abilities")[i % 2])])
            for i in range(min(drawn, 200))
        ],
        "out_of_scope": lambda: [
            Case([], [text_turn(rng(f"scope{i}"), "out_of_scope")]) for i in range(min(drawn, 200))
        ],
        "refused": in_scope,
    }
    wanted = (name for name in makers if abilities is None or name in abilities)
    return {name: cases for name in wanted if (cases := makers[name]())}


def _is_command(clip: Clip) -> bool:
    """Say whether a clip is a single word of Speech Commands, digits among them."""
    return clip.source == "speech_commands" and clip.label != SILENCE
