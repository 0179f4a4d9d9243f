"""What one step of the vision tower's training holds, and what it is measured on.

A step's batch is a function of the seed and the step alone, so a run that is resumed sees what it
would have seen.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from torch.utils.data import Dataset

from finetune.tiny.fonts import find_fonts
from finetune.tiny.receipts import crops_by_grid
from finetune.tiny.scene_targets import random_event_tubelets, random_scenes
from finetune.tiny.vision_augment import augment_digit, augment_photo
from finetune.tiny.vision_data import (
    MAX_PATCHES,
    MIN_PATCHES,
    Task,
    cifar_arrays,
    digits,
    easy_lines,
    mnist_arrays,
    photos,
    random_blocks,
    random_lines,
    random_pages,
    random_stills,
    random_tubelets,
    receipt_crops,
)


def easy_share(progress: float, *, reads: bool) -> float:
    """Return the share of steps whose lines are easy.

    Args:
        progress: Share of all steps that is done.
        reads: Whether the run started from a tower that reads.
    """
    return 0.05 if reads else float(np.clip((0.75 - progress) / 0.15, 0.1, 1.0))


class BatchSizes(NamedTuple):
    """Items of each task in one step; printed text is the hardest and the dearest."""

    photo: int = 5
    line: int = 30
    receipt: int = 12
    block: int = 20
    digit: int = 6
    clip: int = 5
    still: int = 2
    scene: int = 0
    events: int = 0
    page: int = 0


class VisionBatches(Dataset[list[Task]]):
    """Training batches by step number; item `step` is the same whenever it is asked for."""

    def __init__(
        self, data: Path, seed: int, num_steps: int, sizes: BatchSizes, *, reads: bool = False
    ) -> None:
        self.data, self.seed, self.num_steps, self.sizes = data, seed, num_steps, sizes
        self.reads = reads
        cifar_arrays(data, "train")  # decoded once, before worker processes are forked
        if sizes.receipt:
            crops_by_grid(data, "train", MIN_PATCHES, MAX_PATCHES)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> list[Task]:
        rng = np.random.default_rng((self.seed, step))
        pictures, labels = cifar_arrays(self.data, "train")
        chosen = _epoch_order(self.seed, len(labels), step * self.sizes.photo, self.sizes.photo)
        photo = photos(np.stack([augment_photo(rng, pictures[i]) for i in chosen]), labels[chosen])
        pictures, labels = mnist_arrays(self.data, "train")
        chosen = rng.integers(len(labels), size=self.sizes.digit)
        easy = rng.random() < easy_share(step / self.num_steps, reads=self.reads)
        fonts = find_fonts("train")
        draw_lines = easy_lines if easy else random_lines
        tasks = [
            photo,
            draw_lines(rng, fonts, self.sizes.line),
            random_blocks(rng, fonts, self.sizes.block, easy=easy),
            digits([augment_digit(rng, pictures[i]) for i in chosen], labels[chosen]),
            random_tubelets(rng, self.sizes.clip),
            random_stills(rng, self.sizes.still),
        ]
        if self.sizes.receipt:
            tasks.append(receipt_crops(rng, self.data, "train", self.sizes.receipt))
        if self.sizes.scene:
            tasks.append(random_scenes(rng, self.sizes.scene))
        if self.sizes.events:
            tasks.append(random_event_tubelets(rng, self.sizes.events))
        if self.sizes.page:
            tasks.append(random_pages(rng, fonts, "train", self.sizes.page))
        return tasks


def validation_tasks(data: Path, real: int, drawn: int, seed: int = 1) -> list[Task]:
    """Make the fixed validation set: held-out photographs and digits, unseen fonts, new clips.

    Args:
        data: Folder of the training data.
        real: Photographs and digits at most, each; there are 2,547 and about 480.
        drawn: Items of each drawn task, rounded down to a multiple of 16, at least 16.
        seed: Seed of what is drawn.
    """
    rng = np.random.default_rng((seed, 0x5EED))
    tasks: list[Task] = []
    pictures, labels = cifar_arrays(data, "validation")
    order = rng.permutation(len(labels))[:real]
    tasks += [photos(pictures[o], labels[o]) for o in _chunks(order)]
    pictures, labels = mnist_arrays(data, "validation")
    order = rng.permutation(len(labels))[:real]
    for chunk in _chunks(order):
        plain = [np.repeat(pictures[i][..., None], 3, axis=-1) for i in chunk]
        tasks.append(digits(plain, labels[chunk]))
    if (data / "sroie").exists():
        tasks += [receipt_crops(rng, data, "validation", 16) for _ in range(max(1, drawn // 16))]
    for make in _drawn_validation():
        tasks += [make(rng) for _ in range(max(1, drawn // 16))]
    return tasks


def _drawn_validation() -> list[Callable[[Generator], Task]]:
    fonts = find_fonts("validation")
    return [
        lambda rng: random_lines(rng, fonts, 16),
        lambda rng: random_blocks(rng, fonts, 16, easy=False),
        lambda rng: random_tubelets(rng, 16),
        lambda rng: random_stills(rng, 16),
        lambda rng: random_scenes(rng, 16),
        lambda rng: random_event_tubelets(rng, 16),
        lambda rng: random_pages(rng, fonts, "validation", 16),
    ]


def _epoch_order(seed: int, total: int, start: int, count: int) -> np.ndarray:
    """Positions `start` to `start + count` of an endless row of shuffled epochs."""
    places = np.arange(start, start + count)
    orders = {e: _shuffled(seed, e, total) for e in np.unique(places // total).tolist()}
    return np.asarray([orders[p // total][p % total] for p in places.tolist()])


@cache
def _shuffled(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, total)).permutation(total)


def _chunks(order: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]
