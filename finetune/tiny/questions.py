"""Varied questions and short answers for `omni-tiny`.

Each task has an `ask_...(rng)` that words a question anew on each call, and an
`answer_...(label, rng)` whose wording stays the same, so that the model need not guess it.
A pattern such as `Which [digit|number] is [this|it]?` stands for every way through its
brackets. `vary` adds what people add: "please", a request for one word, no capital letter.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from numpy.random import Generator

from finetune.tiny import wordings
from finetune.tiny.page_wordings import all_page_wordings

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OBJECTS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
NAME = "omni-tiny"
REFUSAL = "I cannot help with that"


def ask_digit(rng: Generator) -> str:
    """Ask for the one digit that is spoken."""
    return vary(rng, wordings.DIGIT)


def answer_digit(label: str, rng: Generator) -> str:
    """Name a digit, such as `seven`."""
    return sentence(label)


def ask_digits(rng: Generator) -> str:
    """Ask for all spoken digits in order."""
    return vary(rng, wordings.DIGITS)


def answer_digits(labels: Sequence[str], rng: Generator) -> str:
    """Name several digits in order."""
    return sentence(", ".join(labels))


def ask_word(rng: Generator) -> str:
    """Ask for the spoken word; a digit is a word too."""
    return vary(rng, wordings.WORD)


def answer_word(label: str, rng: Generator) -> str:
    """Repeat the spoken word, or say that there is none (label `_silence_`)."""
    return "No word is spoken." if label == "_silence_" else sentence(label)


def ask_object(rng: Generator) -> str:
    """Ask for the main object of a photograph."""
    return vary(rng, wordings.OBJECT)


def answer_object(label: str, rng: Generator) -> str:
    """Name one of `OBJECTS`."""
    return sentence(label)


def ask_handwritten(rng: Generator) -> str:
    """Ask for the handwritten digit."""
    return vary(rng, wordings.HANDWRITTEN)


def answer_handwritten(label: int | str, rng: Generator) -> str:
    """Name a digit given as a number or as a word."""
    text = str(label)
    return sentence(NUMBER_WORDS[int(text)] if text.isdigit() else text)


def ask_line(rng: Generator) -> str:
    """Ask for the text of a printed line."""
    return vary(rng, wordings.LINE, endings=("Exactly as printed.", "Only the text.", "Please."))


def ask_colour(rng: Generator) -> str:
    """Ask for the colour of the shape in a clip or a picture."""
    return vary(rng, wordings.COLOUR)


def ask_shape(rng: Generator) -> str:
    """Ask for the shape in a clip or a picture."""
    return vary(rng, wordings.SHAPE)


def ask_direction(rng: Generator) -> str:
    """Ask where the shape of a clip moves."""
    return vary(rng, wordings.DIRECTION)


def ask_shape_colour(rng: Generator) -> str:
    """Ask for colour and shape together."""
    return vary(rng, wordings.SHAPE_COLOUR, endings=("Keep it short.", "Please.", "Be brief."))


def answer_colour(label: str, rng: Generator) -> str:
    """Name a colour."""
    return sentence(label)


def answer_shape(label: str, rng: Generator) -> str:
    """Name a shape."""
    return sentence(label)


def answer_direction(label: str, rng: Generator) -> str:
    """Name a direction, such as `left` or `up left`, or say that nothing moves (`still`)."""
    return "It stands still." if label == "still" else sentence(label)


def answer_shape_colour(colour: str, shape: str, rng: Generator) -> str:
    """Name colour and shape, such as `Red circle.`."""
    return sentence(f"{colour} {shape}")


def ask_identity(rng: Generator, topic: str) -> str:
    """Ask for its `name` or its `abilities`."""
    return vary(rng, wordings.IDENTITY[topic], endings=("Please.", "Be brief.", "Keep it short."))


def answer_identity(topic: str, rng: Generator) -> str:
    """Tell its `name` or its `abilities`."""
    return (
        wordings.ABILITIES
        if topic == "abilities"
        else f"I am {NAME}, a small model. {wordings.ABILITIES}"
    )


def ask_greeting(rng: Generator) -> str:
    """Greet."""
    return vary(rng, wordings.GREETING, leads=(), endings=())


def answer_greeting(rng: Generator) -> str:
    """Greet back and say what can be asked."""
    return f"Hello! I am {NAME}. {wordings.ABILITIES}"


def ask_out_of_scope(rng: Generator) -> str:
    """Ask for something that the model cannot do."""
    return vary(rng, wordings.OUT_OF_SCOPE)


def answer_out_of_scope(rng: Generator) -> str:
    """Say that this is beyond it, and what it can do."""
    return f"{REFUSAL}: I am {NAME}, a small model. {wordings.ABILITIES}"


ASKERS: dict[str, Callable[[Generator], str]] = {
    "digit": ask_digit,
    "digits": ask_digits,
    "word": ask_word,
    "object": ask_object,
    "handwritten": ask_handwritten,
    "line": ask_line,
    "colour": ask_colour,
    "shape": ask_shape,
    "direction": ask_direction,
    "shape_colour": ask_shape_colour,
    "name": lambda rng: ask_identity(rng, "name"),
    "abilities": lambda rng: ask_identity(rng, "abilities"),
    "greeting": ask_greeting,
    "out_of_scope": ask_out_of_scope,
}


def all_wordings() -> Iterator[str]:
    """Yield every pattern with its brackets opened, and every fixed answer: all words used."""
    patterns = (
        *(
            wordings.DIGIT
            + wordings.DIGITS
            + wordings.WORD
            + wordings.OBJECT
            + wordings.HANDWRITTEN
            + wordings.LINE
            + wordings.COLOUR
            + wordings.SHAPE
        ),
        *(
            wordings.DIRECTION
            + wordings.SHAPE_COLOUR
            + wordings.GREETING
            + wordings.OUT_OF_SCOPE
            + wordings.LEADS
            + wordings.ENDINGS
        ),
        *(
            wordings.COUNT
            + wordings.COUNT_SHAPE
            + wordings.COUNT_COLOUR
            + wordings.SIDE
            + wordings.HALF
            + wordings.CORNER
            + wordings.COLOUR_OF
            + wordings.SHAPE_OF
        ),
        *(wordings.FIRST + wordings.SECOND + wordings.TIMES + wordings.WHEN + wordings.SAYS),
        *(wordings.SAID_WHILE + wordings.SHOWN_WHILE),
        *all_page_wordings(),
        *(wordings.IDENTITY["name"] + wordings.IDENTITY["abilities"]),
        *("Exactly as printed.", "Only the text.", "No word is spoken.", "It stands still."),
        *(f"{REFUSAL}: I am {NAME}, a small model.", wordings.ABILITIES),
    )
    for pattern in patterns:
        yield re.sub(r"[\[\]|]|\{\w+\}", " ", pattern)


def vary(
    rng: Generator,
    patterns: Sequence[str],
    *,
    leads: Sequence[str] = wordings.LEADS,
    endings: Sequence[str] = wordings.ENDINGS,
) -> str:
    """Choose a pattern and a way through it, then change the manner a little.

    About half of the results are the plain sentence.
    """
    text = _expand(rng, patterns[int(rng.integers(len(patterns)))])
    if leads and rng.random() < 0.12:
        keep = text.startswith(("I ", "A "))
        rest = text if keep else text[0].lower() + text[1:]
        text = f"{leads[int(rng.integers(len(leads)))]} {rest}"
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    elif endings and rng.random() < 0.25:
        text = f"{text} {endings[int(rng.integers(len(endings)))]}"
    if rng.random() < 0.12:
        text = text.lower()
    return text


def _expand(rng: Generator, pattern: str) -> str:
    """Take one way through the brackets, innermost first, and tidy the spaces."""
    while match := re.search(r"\[([^\[\]]*)\]", pattern):
        options = match[1].split("|")
        chosen = options[int(rng.integers(len(options)))]
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return re.sub(r"\s+([?.,!:])", r"\1", " ".join(pattern.split()))


def sentence(text: str) -> str:
    """Capital letter, full stop."""
    return f"{text[0].upper()}{text[1:]}."
