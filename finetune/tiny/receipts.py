"""Lines of real receipts: crops of scanned receipts (SROIE) with what is printed in them.

Split by shop. Company names and addresses stay out, since they are the task of the fine-tuning
example; so do lines with characters or lengths that the reading head has no place for, and mere
marks.
"""

import json
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image

from encoders.vision.preprocessing import choose_image_grid
from finetune.tiny.fonts import Split
from finetune.tiny.printed import CHARACTERS, MAX_CHARACTERS

VALIDATION_SHARE = 0.1
RESERVED_FIELDS = ("company", "address")
MIN_PIXELS = 8  # lines with a shorter side are marks, not text


class Crop(NamedTuple):
    """A line on its receipt."""

    receipt: UInt8[np.ndarray, "height width"]
    """The whole scan, grey."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels."""
    text: str


@cache
def receipt_lines(data: Path, split: Split) -> tuple[Crop, ...]:
    """Load all short lines of the receipts of one side of the split.

    Args:
        data: Folder with `sroie/manifest.jsonl` and `sroie/images/`.
        split: Which part; a fixed tenth of the shops, by name, is for validation.
    """
    crops = []
    folder = data / "sroie"
    for row in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        key = row["key"]
        if is_held_out(str(key.get("company"))) != (split == "validation"):
            continue
        with Image.open(folder / row["file"]) as image:
            receipt = np.asarray(image.convert("L"))
        reserved = " ".join(str(key.get(name, "")) for name in RESERVED_FIELDS).upper()
        for line in row["lines"]:
            text = " ".join(line["text"].split())
            readable = 0 < len(text) <= MAX_CHARACTERS and set(text) <= set(CHARACTERS)
            is_reserved = any(map(str.isalpha, text)) and text.upper() in reserved
            left, top, right, bottom = line["box"]
            is_drawn = right - left >= MIN_PIXELS and bottom - top >= MIN_PIXELS
            if readable and is_drawn and not is_reserved:
                crops.append(Crop(receipt, (left, top, right, bottom), text))
    return tuple(crops)


def cut(crop: Crop, rng: Generator | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Cut a line out of its receipt.

    Args:
        crop: The line.
        rng: Moves each side by up to an eighth of the line's height; by default none moves.
    """
    left, top, right, bottom = crop.box
    reach = (bottom - top) / 8
    moves = np.zeros(4) if rng is None else rng.uniform(-0.5 * reach, reach, 4)
    left, top = max(0, round(left - moves[0])), max(0, round(top - moves[1]))
    grey = crop.receipt[top : round(bottom + moves[3]), left : round(right + moves[2])]
    return np.repeat(grey[..., None], 3, axis=-1)


@cache
def crops_by_grid(
    data: Path, split: Split, min_patches: int, max_patches: int
) -> dict[tuple[int, int], tuple[Crop, ...]]:
    """Group lines by the patch grid of their box, so that batches are dense."""
    groups: dict[tuple[int, int], list[Crop]] = defaultdict(list)
    for crop in receipt_lines(data, split):
        left, top, right, bottom = crop.box
        grid = choose_image_grid(
            bottom - top, right - left, min_patches=min_patches, max_patches=max_patches
        )
        groups[grid].append(crop)
    return {grid: tuple(groups[grid]) for grid in sorted(groups)}


def is_held_out(shop: str) -> bool:
    """Whether a shop is kept out of the training of `omni-tiny` and of the recipe `receipts`."""
    return zlib.crc32(f"shop/{shop}".encode()) % 1000 < 1000 * VALIDATION_SHARE
