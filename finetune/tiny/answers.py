"""Answers in parts: what is seen or heard first, then what follows from it.

A decoder as small as this one answers at once what it can point at: a colour, a side, a time. A
count, an order or a comparison needs steps, and its only place for steps is the answer:

    One red star, two blue star: two.        Red circle, blue star: blue star.
    Blue circle, red star one, blue star two: two.           Total: 12.50
    Go is first, seven is second: seven is second.

What stands after the last colon and space is the answer proper (`conclusion`); it alone is judged.
Where it looks something up, it says the key before the value, in the order of the steps: a decoder
copies what followed the same word before, long before it learns to compare.
"""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.guide import Span
from finetune.tiny.questions import NUMBER_WORDS


class Part(NamedTuple):
    """A part of an answer, and what shows it."""

    text: str
    span: Span | None = None
    medium: int = 0
    """Which medium of the question, from 0."""
    is_heard: bool = False
    """In the sound of a clip, not in its frames."""


class QA(NamedTuple):
    """A question and its answer."""

    task: str
    question: str
    parts: tuple[Part, ...]

    @property
    def answer(self) -> str:
        """All of the answer."""
        return "".join(part.text for part in self.parts)


def at_once(text: str, span: Span | None = None) -> tuple[Part, ...]:
    """Answer without steps.

    Args:
        text: The answer, a whole sentence.
        span: What shows it, if that is one place.
    """
    return (Part(text, span),)


def in_steps(steps: Sequence[Part], text: str) -> tuple[Part, ...]:
    """Answer in steps.

    A comma says that there is another thing, so what shows that thing shows the comma as well.

    Args:
        steps: What is seen or heard, in order.
        text: What follows from it.
    """
    commas = [step._replace(text=", ") for step in steps[1:]]
    said = [part for pair in zip(steps, (*commas, Part(": ")), strict=True) for part in pair]
    return (said[0]._replace(text=said[0].text.capitalize()), *said[1:], Part(f"{text}."))


def by_counting(things: Sequence[Part]) -> tuple[Part, ...]:
    """Count aloud, and say of each thing what it is: nothing is counted twice or left out unseen.

    Args:
        things: In the order in which they are counted, one to nine; a thing may be left unnamed.
    """
    steps = [
        thing._replace(text=f"{NUMBER_WORDS[number]} {thing.text}".strip())
        for number, thing in enumerate(things, start=1)
    ]
    return in_steps(steps, NUMBER_WORDS[len(things)])


def by_counting_some(things: Sequence[Part], are_meant: Sequence[bool]) -> tuple[Part, ...]:
    """Name everything, and count aloud what is meant.

    To find the next thing of some kind among others is hard for a small decoder: it names one too
    many. To find the next thing of any kind, and then to see whether it is meant, is not.

    Args:
        things: In the order in which they are named.
        are_meant: Of each thing, whether it counts; one to nine do.
    """
    numbers = iter(NUMBER_WORDS[1:])
    steps = [
        thing._replace(text=f"{thing.text} {next(numbers)}") if is_meant else thing
        for thing, is_meant in zip(things, are_meant, strict=True)
    ]
    return in_steps(steps, NUMBER_WORDS[sum(are_meant)])


def conclusion(answer: str) -> str:
    """Return what an answer comes to: all of it, if it has no steps.

    Args:
        answer: What was said.
    """
    return answer.rpartition(": ")[2].strip()
