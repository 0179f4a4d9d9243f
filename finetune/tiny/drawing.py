"""Drawn training pictures and clips: one coloured shape, standing or moving.

Everything is a function of a `numpy.random.Generator`, so a seed gives the same picture again.
Pictures are uint8 RGB arrays as a decoder would give them; no resizing happens here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (35, 160, 50),
    "blue": (35, 70, 215),
    "yellow": (240, 215, 30),
    "orange": (245, 135, 20),
    "purple": (135, 45, 170),
    "pink": (245, 130, 185),
    "cyan": (40, 200, 220),
    "white": (248, 248, 248),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond")
# Unit steps in image coordinates: x to the right, y down.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-0.7071, -0.7071),
    "up right": (0.7071, -0.7071),
    "down left": (-0.7071, 0.7071),
    "down right": (0.7071, 0.7071),
    "still": (0.0, 0.0),
}
SAMPLE_PERIOD_S = 0.25  # between two frames of a drawn clip: what 4 fps sampling gives


class Motion(NamedTuple):
    """A drawn clip before it is drawn: one shape on a straight path at constant speed."""

    colour: str
    shape: str
    direction: str
    height: int
    width: int
    num_frames: int
    radius: float
    start: tuple[float, float]
    """Centre (x, y) in the first frame, pixels."""
    step: tuple[float, float]
    """Shift (x, y) from frame to frame, pixels."""
    background: UInt8[np.ndarray, "height width 3"]
    noise: float
    """Standard deviation of the noise that differs from frame to frame, grey levels."""


def random_clip(
    rng: Generator,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], dict[str, str]]:
    """Draw a clip of 8 to 16 frames, `SAMPLE_PERIOD_S` apart, in which one shape moves.

    Args:
        rng: Source of randomness.

    Returns:
        The frames, and the facts `colour`, `shape`, `direction`.
    """
    motion = random_motion(rng)
    frames = [draw_frame(rng, motion, index) for index in range(motion.num_frames)]
    facts = {"colour": motion.colour, "shape": motion.shape, "direction": motion.direction}
    return np.stack(frames), facts


def random_still(
    rng: Generator, size: tuple[int, int] | None = None
) -> tuple[UInt8[np.ndarray, "height width 3"], dict[str, str]]:
    """Draw a picture of one coloured shape.

    Args:
        rng: Source of randomness.
        size: `(height, width)` in pixels; by default between 64 and 128 a side.

    Returns:
        The picture, and the facts `colour`, `shape`.
    """
    motion = random_motion(rng, size)
    index = int(rng.integers(motion.num_frames))
    return draw_frame(rng, motion, index), {"colour": motion.colour, "shape": motion.shape}


def random_motion(rng: Generator, size: tuple[int, int] | None = None) -> Motion:
    """Choose what moves, where, how fast, and over which background.

    Args:
        rng: Source of randomness.
        size: `(height, width)` of the frames in pixels; by default a square of 64 to 160.
    """
    if size is None:
        side = int(rng.integers(64, 161))
        size = (side, side)
    height, width = size
    colour = str(rng.choice(list(COLOURS), p=_COLOUR_WEIGHTS))
    shape = str(rng.choice(SHAPES))
    direction = str(rng.choice(list(DIRECTIONS), p=_DIRECTION_WEIGHTS))
    num_frames = int(rng.integers(8, 17))
    radius = min(height, width) * rng.uniform(0.08, 0.2)

    dx, dy = DIRECTIONS[direction]
    # The path fits the frame; a shape crosses 45 % to 100 % of the room that there is.
    room = min(
        (width - 2 * radius) / abs(dx) if dx else np.inf,
        (height - 2 * radius) / abs(dy) if dy else np.inf,
    )
    length = room * rng.uniform(0.45, 1.0) if np.isfinite(room) else 0.0
    start = (
        _start(rng, width, radius, dx * length),
        _start(rng, height, radius, dy * length),
    )
    speed = length / (num_frames - 1)
    return Motion(
        colour=colour,
        shape=shape,
        direction=direction,
        height=height,
        width=width,
        num_frames=num_frames,
        radius=radius,
        start=start,
        step=(dx * speed, dy * speed),
        background=_background(rng, height, width, colour),
        noise=float(rng.uniform(0, 8)) if rng.random() < 0.4 else 0.0,
    )


def draw_frame(rng: Generator, motion: Motion, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw frame `index` of a clip; `rng` is used for the frame's own noise only.

    Args:
        rng: Source of randomness.
        motion: The clip.
        index: Frame number from 0.
    """
    frame = Image.fromarray(motion.background)
    frame.paste(COLOURS[motion.colour], (0, 0), Image.fromarray(shape_mask(motion, index)))
    pixels = np.array(frame)
    if motion.noise:
        noisy = pixels + rng.normal(0, motion.noise, pixels.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return pixels


def shape_mask(motion: Motion, index: int) -> UInt8[np.ndarray, "height width"]:
    """Return how much of each pixel the shape covers in frame `index`, 0 to 255.

    Args:
        motion: The clip.
        index: Frame number from 0.
    """
    scale = 3  # drawn larger and averaged, so that steps below a pixel show
    x = motion.start[0] + motion.step[0] * index
    y = motion.start[1] + motion.step[1] * index
    left, top = int(x - motion.radius) - 2, int(y - motion.radius) - 2
    side = int(2 * motion.radius) + 5
    shape = Image.new("L", (side * scale, side * scale), 0)
    _draw_shape(
        ImageDraw.Draw(shape),
        motion.shape,
        (x - left) * scale,
        (y - top) * scale,
        motion.radius * scale,
    )
    mask = Image.new("L", (motion.width, motion.height), 0)
    mask.paste(shape.reduce(scale), (left, top))
    return np.array(mask)


_COLOUR_WEIGHTS = [0.13, 0.13, 0.13, 0.13, 0.12, 0.12, 0.06, 0.06, 0.07, 0.05]
_DIRECTION_WEIGHTS = [0.19, 0.19, 0.19, 0.19, 0.035, 0.035, 0.035, 0.035, 0.10]


def _start(rng: Generator, extent: int, radius: float, travel: float) -> float:
    lowest, highest = radius + max(-travel, 0.0), extent - radius - max(travel, 0.0)
    return float(rng.uniform(lowest, max(lowest, highest)))


def _background(
    rng: Generator, height: int, width: int, colour: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Plain, graded or grainy; far enough from the shape's colour to be told apart."""
    shape_colour = np.asarray(COLOURS[colour], dtype=np.float64)
    while True:
        grey = rng.choice([0, 255, 128, 30, 225]) if rng.random() < 0.6 else rng.integers(0, 256)
        base = np.clip(grey + rng.integers(-45, 46, 3) * (rng.random() < 0.5), 0, 255)
        if np.abs(base - shape_colour).sum() > 170:
            return textured(rng, base, height, width)


def textured(
    rng: Generator, base: np.ndarray, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Return paper of a colour: plain, graded or grainy.

    Args:
        rng: Source of randomness.
        base: Red, green and blue, 0 to 255.
        height: In pixels.
        width: In pixels.
    """
    canvas = np.broadcast_to(base, (height, width, 3)).astype(np.float64)
    kind = rng.random()
    if kind < 0.2:
        slope = rng.normal(0, 20, 3)
        canvas = canvas + np.linspace(-1, 1, width)[None, :, None] * slope
    elif kind < 0.45:
        cells = rng.normal(0, rng.uniform(3, 18), (height // 8 + 1, width // 8 + 1))
        canvas = canvas + np.kron(cells, np.ones((8, 8)))[:height, :width, None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float) -> None:
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        return
    if shape == "square":
        half = radius * 0.85
        draw.rectangle((x - half, y - half, x + half, y + half), fill=255)
        return
    if shape == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
    else:
        count = {"triangle": 3, "diamond": 4}[shape]
        angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
        reach = np.full(count, radius)
    points = zip(x + reach * np.cos(angles), y + reach * np.sin(angles), strict=True)
    draw.polygon([(float(px), float(py)) for px, py in points], fill=255)
