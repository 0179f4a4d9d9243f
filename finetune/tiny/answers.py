"""Answers in parts: what is seen or heard first, then what follows from it.

A decoder as small as this one answers at once what it can point at: a colour, a side, a time. A
count, an order or a comparison needs steps, and its only place for steps is the answer:

    One red star, two blue star: two.        Red circle, blue star: blue star.
    Go is first, seven is second: seven is second.          Total: 12.50

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


def conclusion(answer: str) -> str:
    """Return what an answer comes to: all of it, if it has no steps.

    Args:
        answer: What was said.
    """
    return answer.rpartition(": ")[2].strip()
