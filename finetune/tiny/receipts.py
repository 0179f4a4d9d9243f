"""Lines of real receipts: crops of scanned receipts (SROIE) with what is printed in them.

Split by shop, and measured on shops of whose chain none is trained on. Company names and addresses
stay out, since they are the task of the fine-tuning example; so do lines with characters or lengths
that the reading head has no place for, and mere marks.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image

from encoders.vision.preprocessing import choose_image_grid
from finetune.tiny.chains import are_related
from finetune.tiny.fonts import Split
from finetune.tiny.printed import CHARACTERS, MAX_CHARACTERS
from finetune.tiny.text_rows import cut_text_rows, words_of_pieces

VALIDATION_SHARE = 0.1
RESERVED_FIELDS = ("company", "address")
RESERVED_SHARE = 0.36  # of a page, from the top: company and address of 99 % of the receipts
MIN_PIXELS = 8  # lines with a shorter side are marks, not text
MOST_LETTERS = 18  # of a piece of a row
WHOLLY, BARELY = 0.95, 0.08  # shares of a line's width: a piece shows all of it; more than its edge


class Crop(NamedTuple):
    """A line on its receipt."""

    receipt: UInt8[np.ndarray, "height width"]
    """The whole scan, grey."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels."""
    text: str


class Page(NamedTuple):
    """A receipt and its lines."""

    image: UInt8[np.ndarray, "height width"]
    """The whole scan, grey."""
    lines: tuple[Crop, ...]
    reserved: str
    """Company and address, in capitals."""
    reserved_until: int
    """The first pixel row below all lines that may belong to them."""
    total: str = ""
    """As printed; empty if it is not known."""
    date: str = ""
    """As printed; empty if it is not known."""


@cache
def receipt_pages(data: Path, split: Split) -> tuple[Page, ...]:
    """Load the receipts of one side of the split.

    Args:
        data: Folder with `sroie/manifest.jsonl` and `sroie/images/`.
        split: Which part; a fixed tenth of the shops, by name, is held out. Those of them whose
            chain has other shops are on neither side.
    """
    pages = []
    folder = data / "sroie"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for row in rows_of(rows, split):
        key = row["key"]
        with Image.open(folder / row["file"]) as picture:
            image = np.asarray(picture.convert("L"))
        lines = tuple(
            Crop(image, tuple(line["box"]), " ".join(line["text"].split())) for line in row["lines"]
        )
        reserved = " ".join(str(key.get(name, "")) for name in RESERVED_FIELDS).upper()
        until = [line.box[3] for line in lines if is_reserved(line.text, reserved)]
        top = round(RESERVED_SHARE * len(image))
        known = {name: str(key.get(name) or "").strip() for name in ("total", "date")}
        pages.append(Page(image, lines, reserved, max([top, *until]), **known))
    return tuple(pages)


@cache
def receipt_lines(data: Path, split: Split) -> tuple[Crop, ...]:
    """Return all short lines of the receipts of one side of the split.

    Args:
        data: As `receipt_pages`.
        split: As `receipt_pages`.
    """
    crops = []
    for page in receipt_pages(data, split):
        for line in page.lines:
            left, top, right, bottom = line.box
            readable = 0 < len(line.text) <= MAX_CHARACTERS and set(line.text) <= set(CHARACTERS)
            is_drawn = right - left >= MIN_PIXELS and bottom - top >= MIN_PIXELS
            if readable and is_drawn and not is_reserved(line.text, page.reserved):
                crops.append(line)
    return tuple(crops)


@cache
def receipt_pieces(data: Path, split: Split) -> tuple[Crop, ...]:
    """Return some words at a time of the rows of receipts, below company and address.

    Rows are found and cut as users' pages are (`finetune.tiny.text_rows`); pieces whose words are
    not sure stay out, and so do words of the name or address that are printed again further down.

    Args:
        data: As `receipt_pages`.
        split: As `receipt_pages`.
    """
    crops = []
    for page in receipt_pages(data, split):
        for row in cut_text_rows(page.image):
            text = text_between(page.lines, row.top, row.bottom)
            if row.top < page.reserved_until or "\n" in text:
                continue
            widths = [right - left for left, _, right, _ in row.boxes]
            words = words_of_pieces(text, widths)
            for box, said in zip(row.boxes if words else (), words, strict=True):
                readable = 0 < len(said) <= MOST_LETTERS and set(said) <= set(CHARACTERS)
                if not readable or is_reserved(said.strip(" .,:"), page.reserved):
                    continue
                crop = Crop(page.image, box, said)
                if agrees(crop, lines_between(page.lines, row.top, row.bottom)):
                    crops.append(crop)
    return tuple(crops)


def agrees(piece: Crop, lines: Sequence[Crop]) -> bool:
    """Whether the words of a piece can be those of the labelled lines of its row that it shows.

    Args:
        piece: Some words of a row, shared out by width.
        lines: Of that row, with boxes of their own.
    """
    inside, touched = Counter[str](), Counter[str]()
    left, _, right, _ = piece.box
    for line in lines:
        start, _, end, _ = line.box
        shown = (min(end, right) - max(start, left)) / max(end - start, 1)
        inside.update(line.text.split() if shown > WHOLLY else ())
        touched.update(line.text.split() if shown > BARELY else ())
    return inside <= Counter(piece.text.split()) <= touched


def is_reserved(text: str, reserved: str) -> bool:
    """Whether a line is part of a company's name or address.

    Args:
        text: The line.
        reserved: Both fields, in capitals.
    """
    return any(map(str.isalpha, text)) and text.upper() in reserved


def text_between(lines: Sequence[Crop], top: int, bottom: int) -> str:
    """Read the lines whose middle lies between two heights.

    Args:
        lines: Of a page, in any order.
        top: First pixel row.
        bottom: The row after the last one.

    Returns:
        Their texts from top to bottom; pieces at one height in a line, from left to right.
    """
    rows: list[list[Crop]] = []
    height = 0.0
    for line in sorted(lines_between(lines, top, bottom), key=_middle):
        if not rows or _middle(line) - height > 0.5 * (line.box[3] - line.box[1]):
            rows.append([])
            height = _middle(line)
        rows[-1].append(line)
    ordered = (sorted(row, key=lambda line: line.box[0]) for row in rows)
    return "\n".join(" ".join(line.text for line in row) for row in ordered)


def lines_between(lines: Sequence[Crop], top: int, bottom: int) -> list[Crop]:
    """Return the lines whose middle lies between two heights, in their order."""
    return [line for line in lines if top <= _middle(line) < bottom]


def _middle(line: Crop) -> float:
    return (line.box[1] + line.box[3]) / 2


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


def rows_of(rows: Sequence[dict[str, Any]], split: Split) -> list[dict[str, Any]]:
    """Return the rows of SROIE's manifest that are of one side of the split."""
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rows:
        sides[is_held_out(str(row["key"].get("company")))].append(row)
    if split == "train":
        return sides[False]
    trained = [row["key"] for row in sides[False]]
    return [row for row in sides[True] if not any(are_related(row["key"], key) for key in trained)]


def is_held_out(shop: str) -> bool:
    """Whether a shop is kept out of the training of `omni-tiny` and of the recipe `receipts`."""
    return zlib.crc32(f"shop/{shop}".encode()) % 1000 < 1000 * VALIDATION_SHARE
