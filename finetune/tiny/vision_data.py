"""Training examples of the vision tower: photographs, digits, printed lines, shapes, clips.

Pictures reach the tower exactly as in the product: `choose_image_grid` or `choose_video_grid`,
then `resize_and_patchify`.
"""

import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoders.vision.preprocessing import (
    choose_image_grid,
    choose_video_grid,
    resize_and_patchify,
)
from finetune.tiny.documents import random_page
from finetune.tiny.drawing import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    draw_frame,
    random_motion,
    random_still,
    shape_mask,
)
from finetune.tiny.fonts import Fonts, Split
from finetune.tiny.printed import (
    CHARACTERS,
    MAX_CHARACTERS,
    Line,
    random_line_size,
    render_block,
    render_easy_line,
    render_line,
)
from finetune.tiny.receipts import crops_by_grid, cut
from finetune.tiny.vision_tower import SUBCOLUMNS, Part

PHOTO_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
VALIDATION_SHARE = 0.1
IGNORE = -100  # target of a place that counts for nothing

# Limits of `omni-tiny`: a picture becomes 64 to 1,024 patches, a video frame about 64.
MIN_PATCHES, MAX_PATCHES, FRAME_PATCHES = 64, 1024, 64
LARGE_SHARE = 0.5  # of the batches of pages; a large page counts as three
EASY_GRID = (4, 20)


class Task(NamedTuple):
    """One task's share of a batch: pictures or tubelets of one grid, and what they show."""

    name: str
    part: Part
    targets: dict[str, Int64[Tensor, "..."]]
    texts: tuple[str, ...] = ()


def image_grid(height: int, width: int) -> tuple[int, int]:
    """Return the patch grid that `omni-tiny` gives a picture of this size in pixels."""
    return choose_image_grid(height, width, min_patches=MIN_PATCHES, max_patches=MAX_PATCHES)


def video_grid(height: int, width: int) -> tuple[int, int]:
    """Return the patch grid that `omni-tiny` gives a frame of this size in pixels."""
    return choose_video_grid(height, width, target_patches=FRAME_PATCHES)


# ---- data sets in memory ----


@cache
def cifar_arrays(data: Path, split: Split) -> tuple[UInt8[np.ndarray, "n 32 32 3"], np.ndarray]:
    """Load the photographs of ten classes; a fixed tenth by file name is for validation.

    Args:
        data: Folder with `cifar10/images.zip`.
        split: Which part.

    Returns:
        Pictures, and class numbers into `PHOTO_CLASSES`, int64.
    """
    pictures, labels = [], []
    with zipfile.ZipFile(data / "cifar10" / "images.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            if _is_validation(name) == (split == "validation"):
                with Image.open(io.BytesIO(archive.read(name))) as picture:
                    pictures.append(np.asarray(picture.convert("RGB")))
                labels.append(PHOTO_CLASSES.index(name.split("/")[0]))
    return np.stack(pictures), np.asarray(labels, dtype=np.int64)


@cache
def mnist_arrays(data: Path, split: Split) -> tuple[UInt8[np.ndarray, "n 28 28"], np.ndarray]:
    """Load the handwritten digits; a fixed tenth by position is for validation.

    Args:
        data: Folder with `mnist5k/mnist_train.npz`.
        split: Which part.

    Returns:
        Grey pictures, white on black, and digits, int64.
    """
    with np.load(data / "mnist5k" / "mnist_train.npz") as arrays:
        pictures, labels = arrays["images"], arrays["labels"].astype(np.int64)
    held_out = np.asarray([_is_validation(f"mnist/{i}") for i in range(len(pictures))])
    chosen = held_out if split == "validation" else ~held_out
    return pictures[chosen], labels[chosen]


def _is_validation(name: str) -> bool:
    return zlib.crc32(name.encode()) % 1000 < 1000 * VALIDATION_SHARE


# ---- one task's share of a batch ----


def photos(pictures: np.ndarray, labels: np.ndarray) -> Task:
    """Make tower input from 32 x 32 photographs and their class numbers."""
    return Task("photo", _part(list(pictures)), {"photo": torch.from_numpy(labels)})


def digits(pictures: list[np.ndarray], labels: np.ndarray) -> Task:
    """Make tower input from RGB pictures of digits, which share a grid whatever their size."""
    return Task("digit", _part(pictures), {"digit": torch.from_numpy(labels)})


def lines(drawn: list[Line]) -> Task:
    """Make tower input from printed lines that share a grid, and targets for every patch."""
    part = _part([line.image for line in drawn])
    places = [_place_targets(line, part.grid) for line in drawn]
    texts = tuple(line.text for line in drawn)
    targets = {
        "reading": _reading(texts),
        "symbol": torch.from_numpy(np.stack([symbol for symbol, _ in places])),
        "index": torch.from_numpy(np.stack([index for _, index in places])),
    }
    return Task("line", part, targets, texts)


def random_lines(rng: Generator, fonts: Fonts, count: int) -> Task:
    """Draw `count` printed lines of one random grid."""
    sizes = list(_line_sizes().values())
    weights = np.asarray([len(group) for group in sizes], dtype=np.float64)
    group = sizes[int(rng.choice(len(sizes), p=weights / weights.sum()))]
    chosen = [group[int(rng.integers(len(group)))] for _ in range(count)]
    return lines([render_line(rng, fonts, size) for size in chosen])


def easy_lines(rng: Generator, fonts: Fonts, count: int) -> Task:
    """Draw `count` long plain lines of one fixed grid, to learn letters from."""
    sizes = _line_sizes()[EASY_GRID]
    chosen = [sizes[int(rng.integers(len(sizes)))] for _ in range(count)]
    return lines([render_easy_line(rng, fonts, size) for size in chosen])


def random_blocks(rng: Generator, fonts: Fonts, count: int, *, easy: bool) -> Task:
    """Draw `count` pictures full of text, with the symbol of every place as the only target."""
    drawn = [render_block(rng, fonts, easy=easy) for _ in range(count)]
    part = _part([block[0].image for block in drawn])
    places = [_block_targets([[line] for line in block], part.grid) for block in drawn]
    return Task("block", part, {"symbol": torch.from_numpy(np.stack(places))})


def random_pages(rng: Generator, fonts: Fonts, split: Split, count: int) -> Task:
    """Draw `count` small pages, or a third as many large ones; targets as of `random_blocks`.

    They are widened to a common size.
    """
    large = rng.random() < LARGE_SHARE
    count = max(1, count // 3) if large else count
    drawn = [random_page(rng, fonts, split, large=large) for _ in range(count)]
    height, width = (max(page[0].shape[side] for page in drawn) for side in (0, 1))
    pictures, blocks = [], []
    for pixels, page in drawn:
        margins = (0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)
        pictures.append(np.pad(pixels, margins, mode="edge"))
        rows: list[list[Line]] = []
        for text in page.printed:
            line = Line(pictures[-1], text.text, text.edges, text.top, text.bottom)
            if rows and line.top < (rows[-1][0].top + rows[-1][0].bottom) / 2:
                rows[-1].append(line)  # a value beside its name
            else:
                rows.append([line])
        blocks.append(rows)
    part = _part(pictures)
    symbol = np.stack([_block_targets(rows, part.grid) for rows in blocks])
    return Task("page", part, {"symbol": torch.from_numpy(symbol)})


def receipt_crops(rng: Generator, data: Path, split: Split, count: int) -> Task:
    """Cut `count` lines of one random grid out of real receipts, to be read."""
    groups = list(crops_by_grid(data, split, MIN_PATCHES, MAX_PATCHES).items())
    weights = np.asarray([len(crops) for _, crops in groups], dtype=np.float64)
    grid, crops = groups[int(rng.choice(len(groups), p=weights / weights.sum()))]
    chosen = [crops[int(rng.integers(len(crops)))] for _ in range(count)]
    pictures = [cut(crop, rng if split == "train" else None) for crop in chosen]
    rows = [resize_and_patchify(torch.from_numpy(picture)[None], grid) for picture in pictures]
    texts = tuple(crop.text for crop in chosen)
    return Task("receipt", Part(torch.stack(rows), grid), {"reading": _reading(texts)}, texts)


def random_stills(rng: Generator, count: int) -> Task:
    """Draw `count` pictures of a coloured shape, of one grid; a few are large."""
    side = int(rng.integers(129, 300)) if rng.random() < 0.08 else 0
    size = (side, side) if side else None
    drawn = [random_still(rng, size) for _ in range(count)]
    facts = [fact for _, fact in drawn]
    return Task("still", _part([picture for picture, _ in drawn]), _shape_targets(facts))


def random_tubelets(rng: Generator, count: int) -> Task:
    """Draw `count` pairs of consecutive frames of clips of one grid."""
    height, width = (1, 1) if rng.random() < 0.75 else _CLIP_ASPECTS[int(rng.integers(4))]
    grid = video_grid(height, width)
    rows, covers, facts = [], [], []
    for _ in range(count):
        scale = rng.integers(64, 161) / max(height, width)
        motion = random_motion(rng, (round(height * scale), round(width * scale)))
        first = int(rng.integers(motion.num_frames - 1))
        pair = np.stack([draw_frame(rng, motion, first + i) for i in range(2)])
        frames = resize_and_patchify(torch.from_numpy(pair), grid).unflatten(0, (2, -1))
        rows.append(torch.cat(list(frames), dim=-1))  # (patches, 2 * values): frame by frame
        covers.append(_cover_targets([shape_mask(motion, first + i) for i in range(2)], grid))
        facts.append(
            {"colour": motion.colour, "shape": motion.shape, "direction": motion.direction}
        )
    targets = {"cover": torch.stack(covers), **_shape_targets(facts)}
    return Task("clip", Part(torch.stack(rows), grid), targets)


def symbols(text: str) -> list[int]:
    """Return symbol numbers of a text; 0 is kept for "nothing"."""
    return [CHARACTERS.index(character) + 1 for character in text]


def spell(numbers: list[int]) -> str:
    """Return the text of symbol numbers up to the first "nothing"."""
    end = numbers.index(0) if 0 in numbers else len(numbers)
    return "".join(CHARACTERS[number - 1] for number in numbers[:end])


_CLIP_ASPECTS = ((3, 4), (9, 16), (4, 3), (16, 9))  # height, width


@cache
def _line_sizes() -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Natural picture sizes of printed lines by the grid they get, so that batches are dense."""
    rng = np.random.default_rng(0)
    sizes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for _ in range(4000):
        size = random_line_size(rng)
        sizes[image_grid(*size)].append(size)
    return dict(sizes)


def _part(pictures: list[np.ndarray]) -> Part:
    """Resize pictures that share a grid, whatever their sizes, to tower input."""
    grid = image_grid(*pictures[0].shape[:2])
    if len({picture.shape for picture in pictures}) == 1:
        pixels = torch.from_numpy(np.stack(pictures))
        rows = resize_and_patchify(pixels, grid)
    else:
        rows = torch.cat(
            [resize_and_patchify(torch.from_numpy(picture)[None], grid) for picture in pictures]
        )
    return Part(rows.unflatten(0, (len(pictures), -1)), grid)


def _reading(texts: Sequence[str]) -> Int64[Tensor, "items 12"]:
    """Symbol numbers of each text, 0 after its end."""
    reading = torch.zeros(len(texts), MAX_CHARACTERS, dtype=torch.int64)
    for row, text in zip(reading, texts, strict=True):
        row[: len(text)] = torch.tensor(symbols(text))
    return reading


def _place_targets(line: Line, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which symbol, and which character of the line from 1, stands at each patch's subcolumns.

    Returns:
        Two int64 arrays `(patches, subcolumns)`; 0 where there is no text, `IGNORE` in patch rows
        that text only touches.
    """
    height, width = line.image.shape[:2]
    rows, columns = grid
    edges = line.edges * (columns * 16 / width)
    top, bottom = line.top * rows * 16 / height, line.bottom * rows * 16 / height
    centres = (np.arange(columns * SUBCOLUMNS) + 0.5) * 16 / SUBCOLUMNS
    index = np.searchsorted(edges, centres, side="right")  # 0 before the text, n + 1 after
    index[index > len(line.text)] = 0
    symbol = np.asarray([0, *symbols(line.text)])[index]

    starts = np.arange(rows) * 16.0
    overlap = np.minimum(starts + 16, bottom) - np.maximum(starts, top)
    share = np.clip(overlap, 0, None) / min(16.0, max(bottom - top, 1.0))
    keep = np.where(share >= 0.4, 1, np.where(share > 0, IGNORE, 0))[:, None]
    placed = [np.where(keep == 1, values[None, :], keep) for values in (symbol, index)]
    symbol_map, index_map = (p.reshape(rows * columns, SUBCOLUMNS).astype(np.int64) for p in placed)
    return symbol_map, index_map


def _block_targets(block: list[list[Line]], grid: tuple[int, int]) -> np.ndarray:
    """Which symbol stands at each patch's subcolumns `(patches, subcolumns)` of several lines.

    A line is of one text or of some beside each other. Patch rows that show two lines, or touch
    one only, count for nothing.
    """
    rows, columns = grid
    maps = np.stack(
        [
            np.max([_place_targets(text, grid)[0].reshape(rows, -1) for text in line], axis=0)
            for line in block
        ]
    )
    shown = (maps > 0).any(-1)  # (lines, rows)
    only = maps[shown.argmax(0), np.arange(rows)]
    unclear = (shown.sum(0) > 1) | (~shown.any(0) & (maps == IGNORE).any((0, 2)))
    return np.where(unclear[:, None], IGNORE, only).reshape(rows * columns, SUBCOLUMNS)


def _cover_targets(masks: list[np.ndarray], grid: tuple[int, int]) -> Int64[Tensor, "patches 8"]:
    """Whether the shape covers each quarter of each patch, for the first and the second frame."""
    rows, columns = grid
    covered = torch.from_numpy(np.stack(masks)).float()[None] / 255
    quarters = F.adaptive_avg_pool2d(covered, (2 * rows, 2 * columns))[0] > 0.5
    blocks = quarters.reshape(2, rows, 2, columns, 2).permute(1, 3, 0, 2, 4)
    return blocks.reshape(rows * columns, 8).long()


def _shape_targets(facts: list[dict[str, str]]) -> dict[str, Tensor]:
    names = {"colour": list(COLOURS), "shape": list(SHAPES), "direction": list(DIRECTIONS)}
    return {
        key: torch.tensor([names[key].index(fact[key]) for fact in facts])
        for key in names
        if key in facts[0]
    }
