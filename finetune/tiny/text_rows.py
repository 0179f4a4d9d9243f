"""Find the rows of print on a scanned page by their ink, and cut them into pieces to read.

The oldest way of layout analysis (a horizontal projection profile: Nagy, Seth and Viswanathan
1992), enough for upright scans of receipts: rows of print are runs of pixel rows with ink.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.random import Generator
from PIL import Image

MIN_HEIGHT = 7  # pixels; less is a rule or a speck
EDGE = 0.03  # of the width at either side: shadows of the scanner
DARK = 0.65  # of the paper's brightness, or halfway to the print where that is fainter
PRINT = 1.0  # percent of the pixels that are print, where there is faint print
FAINT = 0.8  # of the paper's brightness; what is brighter is paper
SPECKS = 1.5  # times the ink of the emptiest pixel rows, which a scan may have everywhere
TALL = 1.7  # times the usual height: rows that touch
MARGIN = 0.15  # of a row's height, above and below
SIDE_MARGIN = 0.5  # of a row's height
ENLARGED = 2.0  # small print gets more patches
LONGEST = 6.0  # times its height: a piece of about a dozen letters
LETTER_GAP = 0.1  # of a row's height; wider ones are between words
SPECK = 0.1  # of a row's height; a column with more ink than that has print
NEAR = 0.06  # of a row's width: how far the end of a piece may be from the end of its words


class TextRow(NamedTuple):
    """A row of print, enlarged and in pieces of some words each, and where it was."""

    pieces: list[Image.Image]
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right, bottom of each piece on the page."""
    top: int
    bottom: int


def cut_text_rows(
    page: UInt8[np.ndarray, "height width"], rng: Generator | None = None
) -> list[TextRow]:
    """Cut the rows of print out of a page, and long rows into pieces between words.

    Args:
        page: A grey scan, dark print on light paper.
        rng: Varies margins and enlargement a little, for training; by default nothing varies.

    Returns:
        From top to bottom, each as wide as its print; the page itself if there is no print.
    """
    dark = _dark(page)
    found: list[TextRow] = []
    for top, bottom in find_text_rows(page):
        height = bottom - top
        has_ink = dark[top:bottom].mean(0) > SPECK
        if not has_ink.any():
            continue
        spans = _pieces(has_ink, height)
        side, scale = SIDE_MARGIN * height, ENLARGED
        if rng is not None:
            side, scale = side * rng.uniform(0.3, 1.5), scale * rng.uniform(0.8, 1.1)
            top, bottom = (round(y + rng.uniform(-0.08, 0.08) * height) for y in (top, bottom))
        top, bottom = max(0, top), min(len(page), bottom)
        pieces, boxes = [], []
        for number, (left, right) in enumerate(spans):
            # No piece shows anything of the next word: half of the gap is the most there is.
            before = side if number == 0 else min(side, (left - spans[number - 1][1]) / 2)
            last = number + 1 == len(spans)
            after = side if last else min(side, (spans[number + 1][0] - right) / 2)
            left, right = max(0, round(left - before)), min(page.shape[1], round(right + after))
            boxes.append((left, top, right, bottom))
            piece = Image.fromarray(page).crop(boxes[-1])
            size = max(1, round(scale * piece.width)), max(1, round(scale * piece.height))
            pieces.append(piece.resize(size, Image.Resampling.BICUBIC))
        found.append(TextRow(pieces, boxes, top, bottom))
    whole = (0, 0, page.shape[1], len(page))
    return found or [TextRow([Image.fromarray(page)], [whole], 0, len(page))]


def words_of_pieces(text: str, widths: Sequence[int]) -> tuple[str, ...]:
    """Share the words of a row out among its pieces, by width.

    Args:
        text: Of the row.
        widths: Of the pieces, in pixels.

    Returns:
        The words of each piece; nothing where the end of a piece is not near the end of a word.
    """
    words = text.split()
    if not words:
        return ()
    if len(widths) == 1:
        return (text,)
    if len(words) < len(widths):
        return ()
    ends = np.cumsum([len(word) + 1 for word in words]) / (len(" ".join(words)) + 1)
    cuts = np.cumsum(widths)[:-1] / sum(widths)
    nearest = [int(np.abs(ends - cut).argmin()) for cut in cuts]
    bounds = [0, *(n + 1 for n in nearest), len(words)]
    is_near = np.abs(ends[nearest] - cuts) < NEAR
    if not is_near.all() or min(np.diff(bounds)) < 1:
        return ()
    return tuple(" ".join(words[a:b]) for a, b in pairwise(bounds))


def find_text_rows(page: UInt8[np.ndarray, "height width"]) -> list[tuple[int, int]]:
    """Find rows of print, from top to bottom.

    Args:
        page: A grey scan, dark print on light paper.

    Returns:
        First pixel row and the one after the last, with a little margin; none overlap by more.
    """
    ink = np.convolve(_dark(page).sum(1), np.full(3, 1 / 3), mode="same")
    least = 2.0 + SPECKS * np.percentile(ink, 10)
    runs = [run for run in _runs(ink > least) if run[1] - run[0] >= MIN_HEIGHT]
    if not runs:
        return []
    usual = float(np.median([bottom - top for top, bottom in runs]))
    rows = [part for run in runs for part in _split(ink, run, usual)]
    return [
        (max(0, round(top - MARGIN * usual)), min(len(page), round(bottom + MARGIN * usual)))
        for top, bottom in rows
    ]


def _dark(page: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Where there is ink, without frames, folds and the page's edges."""
    edge = round(EDGE * page.shape[1])
    inside = page[:, edge : page.shape[1] - edge]
    paper, ink = np.percentile(page, 80), np.percentile(inside, PRINT)
    dark = page < max(DARK * paper, (paper + ink) / 2 if ink < FAINT * paper else 0)
    dark[:, :edge] = dark[:, page.shape[1] - edge :] = False
    dark[:, dark.mean(0) > 0.5] = False
    return dark


def _pieces(has_ink: np.ndarray, height: int) -> list[tuple[int, int]]:
    """First column of each piece of a row, and the one after its last.

    A row that is too long is cut where the gap is widest, and rather in the middle.
    """
    words = _runs(has_ink)
    left, right = words[0][0], words[-1][1]
    if right - left <= LONGEST * height:
        return [(left, right)]
    best, cut = LETTER_GAP * height, None
    for (_, end), (start, _) in pairwise(words):
        off_middle = abs(start + end - left - right) / (right - left)  # 1 at either end
        if (start - end) * (1 - 0.5 * off_middle) > best:
            best, cut = (start - end) * (1 - 0.5 * off_middle), (start + end) // 2
    if cut is None:
        return [(left, right)]
    ink = np.arange(len(has_ink))
    return [
        *_pieces(has_ink & (ink < cut), height),
        *_pieces(has_ink & (ink >= cut), height),
    ]


def _runs(is_ink: np.ndarray) -> list[tuple[int, int]]:
    steps = np.diff(np.concatenate([[0], is_ink.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _split(ink: np.ndarray, run: tuple[int, int], usual: float) -> list[tuple[int, int]]:
    """Cut a run of several touching rows where there is least ink."""
    top, bottom = run
    if bottom - top <= TALL * usual:
        return [run]
    low, high = round(top + 0.6 * usual), round(min(top + 1.5 * usual, bottom - 0.4 * usual))
    if high <= low:
        return [run]
    cut = low + int(np.argmin(ink[low:high]))
    return [(top, cut), *_split(ink, (cut, bottom), usual)]
