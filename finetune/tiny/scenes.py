"""Drawn scenes: pictures with several shapes, and clips in which shapes come and go.

Like `drawing.py`, all of it is a function of a generator; facts say what a question may ask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator

from finetune.tiny.drawing import COLOURS, SHAPES, Motion, draw_frame, textured

MAX_SHAPES = 6
CONTRAST = 170  # least sum of the differences of a shape's colour to the paper's
TRIES = 200  # at placing a shape where there is room
MAX_TIMES = 4  # that a shape appears in a clip
MAX_FRAMES = 20  # of a clip in which shapes come one after the other


class Placed(NamedTuple):
    """A shape of a picture."""

    colour: str
    shape: str
    x: float
    """Centre, share of the width."""
    y: float
    """Centre, share of the height."""
    reach: tuple[float, float] = (0.0, 0.0)
    """From the centre to its ends: across, share of the width; down, share of the height."""


class Shown(NamedTuple):
    """A shape of a clip, and for how long it is seen."""

    colour: str
    shape: str
    first: int
    """The first frame that shows it."""
    end: int
    """The first frame that does not show it any more."""
    x: float = 0.5
    """Centre, share of the width."""
    y: float = 0.5
    """Centre, share of the height."""
    reach: tuple[float, float] = (0.0, 0.0)
    """From the centre to its ends: across, share of the width; down, share of the height."""


def random_scene(
    rng: Generator, size: tuple[int, int] | None = None
) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[Placed, ...]]:
    """Draw a picture with up to `MAX_SHAPES` shapes that do not touch.

    Args:
        rng: Source of randomness.
        size: `(height, width)` in pixels; by default 96 to 224 a side.

    Returns:
        The picture and its shapes, in no order.
    """
    height, width = size or random_size(rng)
    count = int(rng.integers(1, MAX_SHAPES + 1))
    paper, colours = _paper(rng, height, width)
    if rng.random() < 0.5:  # few kinds, so that there is something to count
        colours = colours[: int(rng.integers(1, 4))]
    shapes = rng.permutation(SHAPES)[: int(rng.integers(1, len(SHAPES) + 1))]
    placed: list[Placed] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        radius = min(height, width) * rng.uniform(0.07, 0.13)
        found = _free_place(rng, height, width, radius, taken)
        if found is None:
            break
        taken.append((*found, radius))
        colour, shape = str(rng.choice(colours)), str(rng.choice(shapes))
        paper = _drawn(rng, paper, colour, shape, radius, found)
        reach = (radius / width, radius / height)
        placed.append(Placed(colour, shape, found[0] / width, found[1] / height, reach))
    return _noisy(rng, paper), tuple(placed)


def random_size(rng: Generator) -> tuple[int, int]:
    """Draw height and width of a scene, in pixels."""
    return int(rng.integers(96, 225)), int(rng.integers(96, 225))


def random_events(
    rng: Generator,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], tuple[Shown, ...]]:
    """Draw a clip of 8 to 16 frames in which one shape comes and goes, or two come in turn.

    Args:
        rng: Source of randomness.

    Returns:
        The frames, and each showing in order of time. A showing and a pause last at least two
        frames, since two frames make one token.
    """
    side = int(rng.integers(64, 161))
    num_frames = 2 * int(rng.integers(4, 9))
    paper, colours = _paper(rng, side, side)
    count = int(rng.integers(1, min(MAX_TIMES, num_frames // 4) + 1))
    ends = 2 * np.sort(rng.choice(np.arange(num_frames // 2 + 1), 2 * count, replace=False))
    kinds = [(str(rng.choice(colours)), str(rng.choice(SHAPES))) for _ in range(2)]
    in_turn = count == 2 and kinds[0] != kinds[1] and rng.random() < 0.8
    radius = side * rng.uniform(0.1, 0.22)
    showings = tuple(
        Shown(*kinds[i if in_turn else 0], int(ends[2 * i]), int(ends[2 * i + 1]))
        for i in range(count)
    )
    return _shown(rng, paper, radius, showings, num_frames)


def random_sequence(
    rng: Generator, lengths: Sequence[int]
) -> tuple[UInt8[np.ndarray, "frames height width 3"], tuple[Shown, ...]]:
    """Draw a clip with even sides in which shapes come one after the other, no two alike.

    Args:
        rng: Source of randomness.
        lengths: Frames for which each shape is seen, even.

    Returns:
        The frames, at most `MAX_FRAMES` where the lengths allow it, and the showings in order.
    """
    side = 2 * int(rng.integers(32, 81))
    paper, colours = _paper(rng, side, side)
    kinds = rng.permutation([(colour, shape) for colour in colours for shape in SHAPES])
    most = min(len(lengths), max(MAX_FRAMES - sum(lengths), 0) // 2)
    places = len(lengths) + 1  # of pauses: before each showing, and at the end
    pauses = 2 * rng.multinomial(int(rng.integers(most + 1)), [1 / places] * places)
    showings, now = [], 0
    for (colour, shape), length, pause in zip(kinds, lengths, pauses, strict=False):
        showings.append(Shown(str(colour), str(shape), now + int(pause), now + int(pause) + length))
        now = showings[-1].end
    radius = side * rng.uniform(0.1, 0.22)
    return _shown(rng, paper, radius, showings, now + int(pauses[-1]))


def _shown(
    rng: Generator,
    paper: UInt8[np.ndarray, "height width 3"],
    radius: float,
    showings: Sequence[Shown],
    num_frames: int,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], tuple[Shown, ...]]:
    """A clip with each shape at a place of its own, as long as it is seen."""
    side = len(paper)
    frames, placed = [paper] * num_frames, []
    for shown in showings:
        x, y = rng.uniform(radius, side - radius, 2)
        drawn = _drawn(rng, paper, shown.colour, shown.shape, radius, (float(x), float(y)))
        frames[shown.first : shown.end] = [drawn] * (shown.end - shown.first)
        reach = (float(radius / side), float(radius / side))
        placed.append(shown._replace(x=float(x / side), y=float(y / side), reach=reach))
    return np.stack([_noisy(rng, frame) for frame in frames]), tuple(placed)


def _paper(
    rng: Generator, height: int, width: int
) -> tuple[UInt8[np.ndarray, "height width 3"], list[str]]:
    """A background, and the colours that stand out from it, in random order."""
    grey = rng.choice([0, 255, 128, 30, 225]) if rng.random() < 0.6 else rng.integers(0, 256)
    base = np.clip(grey + rng.integers(-45, 46, 3) * (rng.random() < 0.5), 0, 255)
    colours = [c for c, rgb in COLOURS.items() if np.abs(base - np.asarray(rgb)).sum() > CONTRAST]
    return textured(rng, base, height, width), [str(c) for c in rng.permutation(colours)]


def _free_place(
    rng: Generator,
    height: int,
    width: int,
    radius: float,
    taken: Sequence[tuple[float, float, float]],
) -> tuple[float, float] | None:
    for _ in range(TRIES):
        x = float(rng.uniform(radius, width - radius))
        y = float(rng.uniform(radius, height - radius))
        if all(np.hypot(x - ox, y - oy) > 1.2 * (radius + other) for ox, oy, other in taken):
            return x, y
    return None


def _drawn(
    rng: Generator,
    paper: UInt8[np.ndarray, "height width 3"],
    colour: str,
    shape: str,
    radius: float,
    centre: tuple[float, float],
) -> UInt8[np.ndarray, "height width 3"]:
    height, width = paper.shape[:2]
    motion = Motion(
        colour=colour,
        shape=shape,
        direction="still",
        height=height,
        width=width,
        num_frames=1,
        radius=radius,
        start=centre,
        step=(0.0, 0.0),
        background=paper,
        noise=0.0,
    )
    return draw_frame(rng, motion, 0)


def _noisy(
    rng: Generator, pixels: UInt8[np.ndarray, "height width 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    if rng.random() < 0.6:
        return pixels
    noise = rng.normal(0, rng.uniform(0, 8), pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
