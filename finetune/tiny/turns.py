"""Conversations about subjects: varied questions, fixed answers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from numpy.random import Generator

from finetune.guide import Span
from finetune.tiny import questions
from finetune.tiny.answers import QA
from finetune.tiny.audio_data import DIGITS, SILENCE
from finetune.tiny.page_questions import Asked, ask_page, ask_page_count
from finetune.tiny.scene_questions import ask_events, ask_scene, ask_sounded, ask_which_says
from finetune.tiny.subjects import Subject
from omni.media import Video


class Shown(NamedTuple):
    """What shows a part of an answer."""

    medium: int
    """Which medium of the conversation, from 0."""
    span: Span
    is_track: bool = False
    """The sound of a clip, not its frames."""


class Turn(NamedTuple):
    """One question and its answer."""

    task: str
    """What is asked: a key of `questions.ASKERS`, or a task of scenes or pages."""
    question: str
    answer: str
    spelled: bool = False
    """The answer is copied from print, character by character."""
    shown: tuple[Shown | None, ...] = ()
    """What shows each character of the answer; empty if that is not known of any."""


def turns_about(
    rng: Generator, subject: Subject, *, wanted: str | None = None, count: int = 1
) -> list[Turn]:
    """Ask about a subject, each time something else.

    Args:
        rng: Source of randomness.
        subject: What is asked about.
        wanted: Task of the only question; by default what suits the subject.
        count: Most questions; fewer, or none, where a scene or page does not answer as many.
    """
    if subject.task == "page":
        asked = [qa for qa in ask_page(rng, subject.facts["page"]) if wanted in (None, qa.task)]
        return [_page_turn(qa, subject, 0) for qa in asked[:count]]
    if subject.task in ("line", "band"):
        return [reading_turn(rng, [subject])]
    if subject.task in ("scene", "events", "sounded"):
        return _turns_about_scene(rng, subject, wanted=wanted, count=count)
    tasks = _TASKS_OF[subject.task]
    if subject.task == "word" and subject.facts["label"] not in DIGITS:
        tasks = ("word",)
    chosen = [wanted] if wanted else [str(t) for t in rng.permutation(tasks)[:count]]
    return [Turn(t, questions.ASKERS[t](rng), answer(t, subject.facts, rng)) for t in chosen]


def _turns_about_scene(
    rng: Generator, subject: Subject, *, wanted: str | None, count: int
) -> list[Turn]:
    """Ask what the facts answer; about what is wanted only if they do."""
    if subject.task == "scene":
        asked = ask_scene(rng, subject.facts["shapes"])
    elif subject.task == "sounded":
        assert isinstance(subject.medium, Video)
        asked = ask_sounded(rng, subject.facts["said"], subject.medium.duration_s)
    else:
        assert isinstance(subject.medium, Video)
        facts, num_frames = subject.facts, subject.medium.num_frames
        asked = ask_events(rng, facts["showings"], facts["seconds"], num_frames)
    fitting = [qa for qa in asked if wanted in (None, qa.task)]
    return [turn_of(qa) for qa in fitting[:count]]


def turn_of(qa: QA) -> Turn:
    """Make a turn of a question and its answer in parts.

    Args:
        qa: Of which each part may be shown by a medium.
    """
    shown: list[Shown | None] = []
    for part in qa.parts:
        by = Shown(part.medium, part.span, part.is_heard) if part.span else None
        shown += [by] * len(part.text)
    return Turn(qa.task, qa.question, qa.answer, shown=tuple(shown))


_TASKS_OF = {
    "photo": ("object",),
    "word": ("digit", "digit", "word"),
    "digits": ("digits",),
    "handwritten": ("handwritten",),
    "clip": ("direction", "colour", "shape", "shape_colour"),
    "still": ("colour", "shape", "shape_colour"),
}


def answer(task: str, facts: dict[str, str], rng: Generator) -> str:
    """Say the true answer to a question about a subject.

    Args:
        task: A key of `questions.ASKERS` that needs a medium.
        facts: Of the subject.
        rng: Source of randomness.
    """
    if task == "shape_colour":
        return questions.answer_shape_colour(facts["colour"], facts["shape"], rng)
    if task in ("colour", "shape", "direction"):
        reply = getattr(questions, f"answer_{task}")
        return str(reply(facts[task], rng))
    if task == "digits":
        return questions.answer_digits(facts["label"].split(), rng)
    return str(getattr(questions, f"answer_{task}")(facts["label"], rng))


def text_turn(rng: Generator, topic: str | None = None) -> Turn:
    """Ask something that needs no medium.

    Args:
        rng: Source of randomness.
        topic: `name`, `abilities`, `greeting` or `out_of_scope`; by default any.
    """
    topics = ("name", "abilities", "greeting", "out_of_scope")
    topic = topic or str(rng.choice(topics, p=[0.3, 0.25, 0.1, 0.35]))
    replies: dict[str, Callable[[], str]] = {
        "name": lambda: questions.answer_identity("name", rng),
        "abilities": lambda: questions.answer_identity("abilities", rng),
        "greeting": lambda: questions.answer_greeting(rng),
        "out_of_scope": lambda: questions.answer_out_of_scope(rng),
    }
    return Turn(topic, questions.ASKERS[topic](rng), replies[topic]())


def chat(
    media: Sequence[Any], turns: Sequence[Turn], *, answered: bool, reasoned: bool = False
) -> list[dict[str, Any]]:
    """Write turns about media as chat messages; the media come with the first question.

    Args:
        media: Sources of the media.
        turns: Questions with their answers, in order.
        answered: Whether the last answer is included, for training.
        reasoned: Whether reasoning comes before the answers.
    """
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        parts: list[dict[str, Any]] = []
        if number == 0:
            parts = [{"type": "media", "media": source} for source in media]
        parts.append({"type": "text", "text": turn.question})
        messages.append({"role": "user", "content": parts})
        if answered or number + 1 < len(turns):
            said = {"role": "assistant", "content": turn.answer}
            messages.append({**said, "reasoning_content": _reasoning(turn)} if reasoned else said)
    return messages


def _reasoning(turn: Turn) -> str:
    """What to do, in short: steps that help stand in the answer, which has them always."""
    if turn.spelled:
        return "I read."
    if turn.task in _HEARD:
        return "I listen."
    if turn.task in _TOLD:
        return "I know."
    return "I look."


_HEARD = ("digit", "digits", "word", "which")
_TOLD = ("name", "abilities", "greeting", "out_of_scope")


def reading_turn(rng: Generator, printed: Sequence[Subject]) -> Turn:
    """Ask for all that is printed in several pictures, from the first to the last.

    Args:
        rng: Source of randomness.
        printed: Lines or bands, in prompt order.
    """
    text = "\n".join(subject.facts["label"] for subject in printed)
    shown: list[Shown | None] = []
    for medium, subject in enumerate(printed):
        if subject.edges is None:  # somewhere, but where is not known
            return Turn("line", questions.ask_line(rng), text, spelled=True)
        line = [Shown(medium, Span(*edges)) for edges in pairwise(subject.edges.tolist())]
        shown += [None, *line] if medium else line  # nothing shows the end of a line
    return Turn("line", questions.ask_line(rng), text, spelled=True, shown=tuple(shown))


def document_turns(rng: Generator, pages: Sequence[Subject], *, count: int = 1) -> list[Turn]:
    """Ask how many pages there are, and what stands on one of them.

    Args:
        rng: Source of randomness.
        pages: Of one document, in order; some may be pictures of another kind.
        count: Most questions.
    """
    turns = [turn_of(ask_page_count(rng, len(pages)))]
    for _ in range(count):
        number = int(rng.integers(len(pages)))
        if pages[number].task != "page":
            turns.append(_picture_page_turn(rng, pages[number], number))
            continue
        asked = ask_page(rng, pages[number].facts["page"], number if len(pages) > 1 else None)
        turns.append(_page_turn(asked[0], pages[number], number))
    return [turns[i] for i in rng.permutation(len(turns))[:count]]


def _picture_page_turn(rng: Generator, subject: Subject, number: int) -> Turn:
    """What is asked of a picture alone, about a page that shows nothing else."""
    turn = turns_about(rng, subject)[0]
    place = f"page {number + 1}"
    lead = str(rng.choice([f"On {place}:", f"{place.capitalize()}:", f"About {place}:"]))
    shown = tuple(part and part._replace(medium=number) for part in turn.shown)
    return turn._replace(question=f"{lead} {turn.question}", shown=shown)


def _page_turn(asked: Asked, subject: Subject, medium: int) -> Turn:
    """The value as printed, behind what it goes with: `Total: 12.50`, or `Price, Milk: 3.20`."""
    page, answer, shown = subject.facts["page"], "", list[Shown | None]()
    for place, printed in enumerate((*asked.keys, asked.value)):
        joint = "" if not place else ": " if place == len(asked.keys) else ", "
        answer += joint + printed.text
        height = printed.top / page.height, printed.bottom / page.height
        columns = pairwise((printed.edges / page.width).clip(0, 1).tolist())
        shown += [None] * len(joint)
        shown += [Shown(medium, Span(*edges, *height)) for edges in columns]
    return Turn(asked.task, asked.question, answer, spelled=True, shown=tuple(shown))


ORDINALS = (("first", "1"), ("second", "2"))
WHICH_SHARE = 0.75  # of the questions about two recordings of different words


def pair_turn(rng: Generator, subjects: Sequence[Subject]) -> Turn:
    """Ask about one of two media and say which one is meant, or which of two says a word.

    Args:
        rng: Source of randomness.
        subjects: Two of them, in prompt order.
    """
    spoken = [str(subject.facts["label"]) for subject in subjects if subject.task == "word"]
    if len({*spoken} - {SILENCE}) == 2 and rng.random() < WHICH_SHARE:
        return which_turn(rng, (spoken[0], spoken[1]))
    place = int(rng.integers(2))
    turn = turns_about(rng, subjects[place])[0]
    kinds = [_KIND_OF[subject.task] for subject in subjects]
    kind = kinds[place]
    if kinds[0] == kinds[1]:
        ordinal, number = ORDINALS[place]
        lead = rng.choice([f"In the {ordinal} {kind}:", f"{kind.capitalize()} {number}:"])
    else:
        lead = rng.choice([f"In the {kind}:", f"{kind.capitalize()}:", f"About the {kind}:"])
    question = f"{lead} {turn.question}" if rng.random() < 0.9 else f"{turn.question} {lead[:-1]}."
    shown = tuple(part and part._replace(medium=place) for part in turn.shown)
    return turn._replace(question=question, shown=shown)


def which_turn(rng: Generator, words: tuple[str, str]) -> Turn:
    """Ask which of two recordings says a word.

    Args:
        rng: Source of randomness.
        words: Of the first and of the second recording, not the same.
    """
    return turn_of(ask_which_says(rng, words))


_KIND_OF = {
    "line": "picture",
    "band": "picture",
    "page": "page",
    "photo": "picture",
    "handwritten": "picture",
    "still": "picture",
    "scene": "picture",
    "events": "clip",
    "sounded": "clip",
    "word": "recording",
    "digits": "recording",
    "clip": "clip",
}
