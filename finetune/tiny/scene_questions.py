"""Questions about scenes, clips and pairs of recordings, with answers that follow from the facts.

A question is asked only where its answer is plain: a corner is no middle, a side is not shared.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from numpy.random import Generator

from finetune.tiny import wordings
from finetune.tiny.questions import NUMBER_WORDS, sentence, vary
from finetune.tiny.scenes import Placed, Shown
from finetune.tiny.sounded import Said

MIDDLE = 0.12  # of the picture on either side of its middle: in no corner
APART = 0.1  # of the picture, between what is furthest to a side and the next
SIDES: dict[str, Callable[[Placed], float]] = {
    "left": lambda placed: -placed.x,
    "right": lambda placed: placed.x,
    "up": lambda placed: -placed.y,
    "down": lambda placed: placed.y,
}
SIDE_WORDS = {  # how a side is named in questions
    "left": {"side": "left", "most": "leftmost", "place": "on the left"},
    "right": {"side": "right", "most": "rightmost", "place": "on the right"},
    "up": {"side": "up", "most": "topmost", "place": "at the top"},
    "down": {"side": "down", "most": "lowest", "place": "at the bottom"},
}
CENTRE = Placed("", "", 0.5, 0.5)

QA = tuple[str, str, str]  # task, question, answer


def ask_scene(rng: Generator, shapes: Sequence[Placed]) -> list[QA]:
    """Ask all that a picture answers, in random order and wording.

    Args:
        rng: Source of randomness.
        shapes: Of the picture.
    """
    asked = [_qa(rng, "count", wordings.COUNT, _number(len(shapes)))]
    kinds = Counter(placed.shape for placed in shapes)
    colours = Counter(placed.colour for placed in shapes)
    shape, colour = str(rng.choice(sorted(kinds))), str(rng.choice(sorted(colours)))
    number = _number(kinds[shape])
    asked.append(_qa(rng, "count", wordings.COUNT_SHAPE, number, shape=shape))
    number = _number(colours[colour])
    asked.append(_qa(rng, "count", wordings.COUNT_COLOUR, number, colour=colour))
    for placed in shapes:
        if kinds[placed.shape] == 1 and len(shapes) > 1:
            answer = sentence(placed.colour)
            asked.append(_qa(rng, "colour", wordings.COLOUR_OF, answer, shape=placed.shape))
        if colours[placed.colour] == 1 and len(shapes) > 1:
            answer = sentence(placed.shape)
            asked.append(_qa(rng, "shape", wordings.SHAPE_OF, answer, colour=placed.colour))
        corner = _corner(placed)
        if corner and sum(_same_kind(placed, other) for other in shapes) == 1:
            named = {"colour": placed.colour, "shape": placed.shape}
            asked.append(_qa(rng, "corner", wordings.CORNER, sentence(corner), **named))
    for side, reach in SIDES.items():
        ordered = sorted(shapes, key=reach)
        if len(shapes) > 1 and reach(ordered[-1]) - reach(ordered[-2]) > APART:
            answer = _kind(ordered[-1])
            asked.append(_qa(rng, "side", wordings.SIDE, answer, **SIDE_WORDS[side]))
        far = [placed for placed in shapes if reach(placed) > reach(CENTRE) - MIDDLE]
        if len(far) == 1 and reach(far[0]) > reach(CENTRE) + MIDDLE:
            answer = _kind(far[0])
            asked.append(_qa(rng, "side", wordings.HALF, answer, place=SIDE_WORDS[side]["place"]))
    return _shuffled(rng, asked)


def ask_events(rng: Generator, showings: Sequence[Shown], seconds_a_frame: float) -> list[QA]:
    """Ask all that a clip of shapes that come and go answers, in random order and wording.

    Args:
        rng: Source of randomness.
        showings: In order of time.
        seconds_a_frame: Between two frames.
    """
    if len({(shown.colour, shown.shape) for shown in showings}) > 1:
        first, second = showings
        return _shuffled(
            rng,
            [
                _qa(rng, "side", wordings.FIRST, _kind(first)),
                _qa(rng, "side", wordings.SECOND, _kind(second)),
            ],
        )
    asked = [_qa(rng, "count", wordings.TIMES, _number(len(showings)))]
    if showings[0].first > 0:
        start = f"At {seconds_a_frame * showings[0].first:.1f} seconds."
        asked.append(_qa(rng, "when", wordings.WHEN, start))
    return _shuffled(rng, asked)


def ask_sounded(rng: Generator, said: Sequence[Said]) -> list[QA]:
    """Ask which word goes with each shape of a clip, and which shape with each word.

    Args:
        rng: Source of randomness.
        said: In order of time; no shape and no word twice.
    """
    asked = []
    for one in said:
        names = [f"{one.colour} {one.shape}"]
        if sum(one.shape == other.shape for other in said) == 1:
            names.append(one.shape)
        if sum(one.colour == other.colour for other in said) == 1:
            names.append(f"{one.colour} shape")
        thing, word = str(rng.choice(names)), sentence(one.word)
        asked.append(_qa(rng, "word", wordings.SAID_WHILE, word, thing=thing))
        quoted = str(rng.choice([one.word, f"'{one.word}'", f"the word {one.word}"]))
        asked.append(_qa(rng, "shape_colour", wordings.SHOWN_WHILE, _kind(one), word=quoted))
    if len(said) == 1:
        asked.append(_qa(rng, "word", wordings.WORD, sentence(said[0].word)))
    return _shuffled(rng, asked)


def ask_which_says(rng: Generator, words: tuple[str, str]) -> QA:
    """Ask which of two recordings says a word.

    Args:
        rng: Source of randomness.
        words: Of the first and of the second recording, not the same.
    """
    place = int(rng.integers(2))
    return _qa(rng, "which", wordings.SAYS, f"The {('first', 'second')[place]}.", word=words[place])


def _qa(rng: Generator, task: str, patterns: Sequence[str], answer: str, **filled: str) -> QA:
    return task, vary(rng, patterns).format(**filled), answer


def _shuffled(rng: Generator, asked: list[QA]) -> list[QA]:
    return [asked[i] for i in rng.permutation(len(asked))]


def _corner(placed: Placed) -> str | None:
    if abs(placed.x - 0.5) < MIDDLE or abs(placed.y - 0.5) < MIDDLE:
        return None
    return f"{'up' if placed.y < 0.5 else 'down'} {'left' if placed.x < 0.5 else 'right'}"


def _same_kind(one: Placed, other: Placed) -> bool:
    return (one.colour, one.shape) == (other.colour, other.shape)


def _kind(thing: Placed | Shown | Said) -> str:
    return sentence(f"{thing.colour} {thing.shape}")


def _number(count: int) -> str:
    return sentence(NUMBER_WORDS[count])
