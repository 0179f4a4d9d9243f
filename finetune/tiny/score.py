"""How an answer of `omni-tiny` is judged: by a word, a time, a copy, edits, or as a refusal."""

import re
from decimal import Decimal

from finetune.tiny import questions
from finetune.tiny.answers import conclusion
from finetune.tiny.audio_data import WORDS
from finetune.tiny.drawing import COLOURS, DIRECTIONS, SHAPES
from finetune.tiny.train_vision import edit_distance
from finetune.tiny.turns import Turn

_SIDES = tuple(sorted({word for name in DIRECTIONS for word in name.split()}))  # and "still"
# The words among which a question's answer is; an answer that names a wrong one as well is wrong.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "digit": questions.NUMBER_WORDS,
    "handwritten": questions.NUMBER_WORDS,
    "digits": questions.NUMBER_WORDS,
    "word": (*WORDS, "silence"),
    "object": questions.OBJECTS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "shape_colour": (*COLOURS, *SHAPES),
    "direction": _SIDES,
    "corner": _SIDES,
    "side": (*COLOURS, *SHAPES),
    "count": questions.NUMBER_WORDS,
    "which": ("first", "second"),
}
COPIED = ("title", "field", "cell")  # exactly as printed, but for spaces at ends and between words
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
TIME_TOLERANCE = 0.5  # seconds
ABILITY_WORDS = ("digits", "words", "objects", "colours", "shapes", "directions", "lines")
LEAST_ABILITIES = 3  # of these, to have said what it can do


def named(answer: str, candidates: tuple[str, ...]) -> list[str]:
    """Return the candidates that an answer names, in its order.

    Figures count as words, and "no word" as silence, since "no" is a word that may be spoken.

    Args:
        answer: What the model said.
        candidates: Words to look for.
    """
    words = re.findall(r"[a-z]+|[0-9]", answer.lower().replace("no word", "silence"))
    words = [questions.NUMBER_WORDS[int(w)] if w.isdigit() else w for w in words]
    return [word for word in words if word in candidates]


def score_answer(turn: Turn, answer: str) -> float:
    """Judge one answer.

    Args:
        turn: The question with its true answer.
        answer: What the model said.

    Returns:
        1 or 0, where the task is `refused` 1 for a refusal; for lines the character error: edits
        divided by the length of the true text.
    """
    if turn.task == "refused":
        return float(is_refusal(answer))
    if turn.task == "line":
        return edit_distance(answer, turn.answer) / len(turn.answer)
    if turn.task == "when":
        seconds, expected = _first_number(answer), _first_number(turn.answer)
        if seconds is None or expected is None:
            return 0.0
        return float(abs(seconds - expected) <= TIME_TOLERANCE)
    if turn.task in COPIED:
        return float(conclusion(answer).split() == conclusion(turn.answer).split())
    if turn.task == "amount":
        return float(amounts(conclusion(answer)) == amounts(turn.answer))
    if turn.task == "day":
        return float(date_parts(conclusion(answer)) == date_parts(turn.answer))
    if turn.task in CANDIDATES:
        candidates = CANDIDATES[turn.task]
        said, true = (named(conclusion(text), candidates) for text in (answer, turn.answer))
        return float(said == true if turn.task == "digits" else set(said) == set(true))
    words = set(re.findall(r"[a-z]+", answer.lower()))
    knows_abilities = len(words.intersection(ABILITY_WORDS)) >= LEAST_ABILITIES
    if turn.task == "abilities":
        return float(knows_abilities and not is_refusal(answer))
    is_right = is_refusal(answer) == (turn.task == "out_of_scope")
    return float(is_right and questions.NAME in answer and knows_abilities)


def is_refusal(answer: str) -> bool:
    """Say whether an answer is the one to questions that are out of scope."""
    return questions.REFUSAL.lower() in answer.lower()


def amounts(text: str) -> list[Decimal]:
    """Return all amounts in a text; signs of currencies and commas between thousands do not count.

    Args:
        text: Such as `RM 1,204.50`.
    """
    return [Decimal(found) for found in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]


def date_parts(text: str) -> list[int]:
    """Return the numbers of a date as day, month and year, or month, day and year, as printed.

    Months have numbers, wherever their names stand; a year of two digits is of this century.

    Args:
        text: Such as `05 MAR 18`, `2018-03-05` or `Mar 5, 2018`.
    """
    found = re.findall(r"\d+|[a-z]+", text.lower())
    months = [word[:3] for word in found if word[:3] in MONTHS]
    parts = [int(word) for word in found if word.isdigit()]
    if len(months) == 1:
        parts.insert(1, MONTHS.index(months[0]) + 1)
    if len(parts) == 3 and parts[0] > 31:
        parts.reverse()
    if len(parts) == 3 and parts[2] < 100:
        parts[2] += 2000
    return parts


def _first_number(text: str) -> float | None:
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else None
