"""Questions about scenes, clips and pairs of recordings, with answers that follow from the facts.

A question is asked only where its answer is plain: a corner is no middle, a side is not shared.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from numpy.random import Generator

from finetune.guide import Span
from finetune.tiny import wordings
from finetune.tiny.answers import QA, Part, at_once, by_counting, by_counting_some, in_steps
from finetune.tiny.questions import sentence, vary
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


def ask_scene(rng: Generator, shapes: Sequence[Placed]) -> list[QA]:
    """Ask all that a picture answers, in random order and wording.

    Args:
        rng: Source of randomness.
        shapes: Of the picture.
    """
    asked = [_qa(rng, "count", wordings.COUNT, _counted(shapes))]
    kinds = Counter(placed.shape for placed in shapes)
    colours = Counter(placed.colour for placed in shapes)
    shape, colour = str(rng.choice(sorted(kinds))), str(rng.choice(sorted(colours)))
    counted = _counted(shapes, lambda placed: placed.shape == shape)
    asked.append(_qa(rng, "count", wordings.COUNT_SHAPE, counted, shape=shape))
    counted = _counted(shapes, lambda placed: placed.colour == colour)
    asked.append(_qa(rng, "count", wordings.COUNT_COLOUR, counted, colour=colour))
    for placed in shapes:
        where = _place(placed)
        if kinds[placed.shape] == 1 and len(shapes) > 1:
            answer = at_once(sentence(placed.colour), where)
            asked.append(_qa(rng, "colour", wordings.COLOUR_OF, answer, shape=placed.shape))
        if colours[placed.colour] == 1 and len(shapes) > 1:
            answer = at_once(sentence(placed.shape), where)
            asked.append(_qa(rng, "shape", wordings.SHAPE_OF, answer, colour=placed.colour))
        corner = _corner(placed)
        if corner and sum(_same_kind(placed, other) for other in shapes) == 1:
            named = {"colour": placed.colour, "shape": placed.shape}
            answer = at_once(sentence(corner), where)
            asked.append(_qa(rng, "corner", wordings.CORNER, answer, **named))
    for side, reach in SIDES.items():
        ordered = sorted(shapes, key=reach)
        if len(shapes) > 1 and reach(ordered[-1]) - reach(ordered[-2]) > APART:
            answer = at_once(sentence(_kind(ordered[-1])), _place(ordered[-1]))
            asked.append(_qa(rng, "side", wordings.SIDE, answer, **SIDE_WORDS[side]))
        far = [placed for placed in shapes if reach(placed) > reach(CENTRE) - MIDDLE]
        if len(far) == 1 and reach(far[0]) > reach(CENTRE) + MIDDLE:
            answer = at_once(sentence(_kind(far[0])), _place(far[0]))
            place = SIDE_WORDS[side]["place"]
            asked.append(_qa(rng, "side", wordings.HALF, answer, place=place))
    return _shuffled(rng, asked)


def ask_events(
    rng: Generator, showings: Sequence[Shown], seconds_a_frame: float, num_frames: int
) -> list[QA]:
    """Ask all that a clip of shapes that come and go answers, in random order and wording.

    Args:
        rng: Source of randomness.
        showings: In order of time.
        seconds_a_frame: Between two frames.
        num_frames: Of the clip.
    """
    seen = [
        _place(shown)._replace(start=shown.first / num_frames, end=shown.end / num_frames)
        for shown in showings
    ]
    if len({(shown.colour, shown.shape) for shown in showings}) > 1:
        steps = [Part(_kind(shown), span) for shown, span in zip(showings, seen, strict=True)]
        asked = [
            _qa(rng, "side", patterns, in_steps(steps, _kind(shown)))
            for shown, patterns in zip(showings, (wordings.FIRST, wordings.SECOND), strict=True)
        ]
        return _shuffled(rng, asked)
    counted = by_counting(
        [
            Part(f"at {seconds_a_frame * shown.first:.1f}", span)
            for shown, span in zip(showings, seen, strict=True)
        ]
    )
    asked = [_qa(rng, "count", wordings.TIMES, counted)]
    if showings[0].first > 0:
        start = f"At {seconds_a_frame * showings[0].first:.1f} seconds."
        asked.append(_qa(rng, "when", wordings.WHEN, at_once(start)))
    return _shuffled(rng, asked)


def ask_sounded(rng: Generator, said: Sequence[Said], seconds: float) -> list[QA]:
    """Ask which word goes with each shape of a clip, and which shape with each word.

    Args:
        rng: Source of randomness.
        said: In order of time; no shape and no word twice.
        seconds: Duration of the clip.
    """
    pairs = [_seen_and_heard(one, seconds) for one in said]
    by_shape = [part for seen, heard in pairs for part in (seen, heard)]
    by_word = [part for seen, heard in pairs for part in (heard, seen)]
    asked = []
    for one in said:
        names = [f"{one.colour} {one.shape}"]
        if sum(one.shape == other.shape for other in said) == 1:
            names.append(one.shape)
        if sum(one.colour == other.colour for other in said) == 1:
            names.append(f"{one.colour} shape")
        thing, word = str(rng.choice(names)), in_steps(by_shape, f"{_kind(one)}, {one.word}")
        asked.append(_qa(rng, "word", wordings.SAID_WHILE, word, thing=thing))
        quoted = str(rng.choice([one.word, f"'{one.word}'", f"the word {one.word}"]))
        shape = in_steps(by_word, f"{one.word}, {_kind(one)}")
        asked.append(_qa(rng, "shape_colour", wordings.SHOWN_WHILE, shape, word=quoted))
    if len(said) == 1:
        word = (Part(sentence(said[0].word), pairs[0][1].span, is_heard=True),)
        asked.append(_qa(rng, "word", wordings.WORD, word))
    return _shuffled(rng, asked)


def ask_which_says(rng: Generator, words: tuple[str, str]) -> QA:
    """Ask which of two recordings says a word.

    Args:
        rng: Source of randomness.
        words: Of the first and of the second recording, not the same.
    """
    place = int(rng.integers(2))
    told = [f"{word} is {place}" for word, place in zip(words, ("first", "second"), strict=True)]
    answer = in_steps([Part(text, Span(), medium) for medium, text in enumerate(told)], told[place])
    return _qa(rng, "which", wordings.SAYS, answer, word=words[place])


def _qa(
    rng: Generator, task: str, patterns: Sequence[str], parts: tuple[Part, ...], **filled: str
) -> QA:
    return QA(task, vary(rng, patterns).format(**filled), parts)


def _counted(
    shapes: Iterable[Placed], is_meant: Callable[[Placed], bool] | None = None
) -> tuple[Part, ...]:
    """Count shapes from left to right: all of them, or those that are meant."""
    in_order = sorted(shapes, key=lambda placed: placed.x)
    things = [Part(_kind(placed), _place(placed)) for placed in in_order]
    if is_meant is None:
        return by_counting(things)
    return by_counting_some(things, [is_meant(placed) for placed in in_order])


def _seen_and_heard(one: Said, seconds: float) -> tuple[Part, Part]:
    """A shape of a clip, and the word that goes with it."""
    seen, heard = (
        Span(start=start / seconds, end=min(end / seconds, 1.0))
        for start, end in (one.shown_s, one.said_s)
    )
    return Part(_kind(one), seen), Part(one.word, heard, is_heard=True)


def _place(placed: Placed | Shown) -> Span:
    across, down = placed.reach
    return Span(placed.x - across, placed.x + across, placed.y - down, placed.y + down)


def _shuffled(rng: Generator, asked: list[QA]) -> list[QA]:
    return [asked[i] for i in rng.permutation(len(asked))]


def _corner(placed: Placed) -> str | None:
    if abs(placed.x - 0.5) < MIDDLE or abs(placed.y - 0.5) < MIDDLE:
        return None
    return f"{'up' if placed.y < 0.5 else 'down'} {'left' if placed.x < 0.5 else 'right'}"


def _same_kind(one: Placed, other: Placed) -> bool:
    return (one.colour, one.shape) == (other.colour, other.shape)


def _kind(thing: Placed | Shown | Said) -> str:
    return f"{thing.colour} {thing.shape}"
