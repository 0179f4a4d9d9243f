"""What the vision tower learns from scenes: at each patch, which shape is there.

Several shapes are told apart, found and counted only by features that say what stands where, so
the tower learns that before a decoder asks. Which shape lies furthest to a side is a comparison of
all; the tower, whose patches see each other, marks it where a question can look it up. So it does
with the number of each shape, counted from the left: who counts aloud looks up one number after the
other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from encoders.vision.preprocessing import resize_and_patchify
from finetune.tiny.drawing import COLOURS, SHAPES
from finetune.tiny.scene_questions import APART, SIDES
from finetune.tiny.scenes import Placed, random_events, random_scene, random_size
from finetune.tiny.vision_data import IGNORE, Task, image_grid, video_grid
from finetune.tiny.vision_tower import Part

PATCH = 16  # pixels
CORE, EDGE = 0.5, 1.1  # of a radius: a patch shows the shape; a patch may touch it


def random_scenes(rng: Generator, count: int) -> Task:
    """Draw `count` pictures of several shapes, all of one random size."""
    size = random_size(rng)
    drawn = [random_scene(rng, size) for _ in range(count)]
    grid = image_grid(*size)
    rows = resize_and_patchify(torch.from_numpy(np.stack([p for p, _ in drawn])), grid)
    targets = _stacked([place_targets(shapes, grid) for _, shapes in drawn])
    targets["count"] = torch.tensor([len(shapes) - 1 for _, shapes in drawn])
    return Task("scene", Part(rows.unflatten(0, (count, -1)), grid), targets)


def random_event_tubelets(rng: Generator, count: int) -> Task:
    """Draw `count` pairs of frames of clips in which shapes come and go; some show nothing."""
    grid = video_grid(1, 1)
    rows, targets = [], []
    for _ in range(count):
        frames, showings = random_events(rng)
        first = 2 * int(rng.integers(len(frames) // 2))
        pair = resize_and_patchify(torch.from_numpy(frames[first : first + 2]), grid)
        rows.append(torch.cat(list(pair.unflatten(0, (2, -1))), dim=-1))
        seen = [
            Placed(shown.colour, shown.shape, shown.x, shown.y, shown.reach)
            for shown in showings
            if shown.first <= first < shown.end
        ]
        targets.append(place_targets(seen, grid))
    return Task("events", Part(torch.stack(rows), grid), _stacked(targets))


def place_targets(shapes: Sequence[Placed], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return what the patches of a picture are to say about its shapes.

    Args:
        shapes: Of the picture.
        grid: Its patches, `(rows, columns)`.

    Returns:
        int64 by patch: `thing_colour` and `thing_shape`, from 1, 0 where nothing is, `IGNORE` where
        a shape may only be touched; `centre`, 1 where a shape's centre is; `outermost`
        `(patches, 4)`, there only, whether no other shape lies further to each of `SIDES`; `rank`
        `(patches, 3)`, as of `thing_shape`, the shape's number from the left: of all, of those of
        its colour and of those of its kind.
    """
    rows, columns = grid
    colour = np.zeros((rows, columns), np.int64)
    shape, centre = colour.copy(), colour.copy()
    rank = np.zeros((rows, columns, 3), np.int64)
    outermost = np.full((rows, columns, len(SIDES)), IGNORE, np.int64)
    down, across = np.mgrid[:rows, :columns].astype(float)
    for placed in shapes:
        x, y = placed.x * columns, placed.y * rows  # in patches
        radius = (placed.reach[0] * columns + placed.reach[1] * rows) / 2  # patches are square
        gaps = [np.clip(np.maximum(a - c, c - a - 1), 0, None) for a, c in ((across, x), (down, y))]
        distance = np.hypot(*gaps)  # of the patch's nearest point
        touched = distance < EDGE * radius
        core = distance < CORE * radius
        for values, number in (
            (colour, [*COLOURS].index(placed.colour) + 1),
            (shape, SHAPES.index(placed.shape) + 1),
        ):
            values[touched & (values == 0)] = IGNORE
            values[core] = number
        rank[touched & (rank[..., 0] == 0)] = IGNORE
        rank[core] = _ranks(placed, shapes)
        cell = min(int(y), rows - 1), min(int(x), columns - 1)
        centre[cell] = 1
        outermost[cell] = [_is_outermost(placed, shapes, side) for side in SIDES]
    by_patch = {"thing_colour": colour, "thing_shape": shape, "centre": centre}
    found = {name: values.reshape(-1) for name, values in by_patch.items()}
    return {
        **found,
        "outermost": outermost.reshape(-1, len(SIDES)),
        "rank": rank.reshape(-1, rank.shape[-1]),
    }


def _ranks(placed: Placed, shapes: Sequence[Placed]) -> tuple[int, int, int]:
    """The number of a shape from the left, from 1: of all, of its colour, of its kind."""
    left = [other for other in shapes if other.x < placed.x]
    return (
        1 + len(left),
        1 + sum(other.colour == placed.colour for other in left),
        1 + sum(other.shape == placed.shape for other in left),
    )


def _is_outermost(placed: Placed, shapes: Sequence[Placed], side: str) -> int:
    """1 if a shape lies furthest to a side, 0 if not, `IGNORE` if another lies nearly as far."""
    reach = SIDES[side]
    others = [reach(other) for other in shapes if other is not placed]
    gap = reach(placed) - max(others, default=-1.0)
    return IGNORE if abs(gap) < APART / 2 else int(gap > 0)


def _stacked(targets: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([one[name] for one in targets])) for name in targets[0]}
