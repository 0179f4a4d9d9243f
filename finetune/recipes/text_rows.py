"""Find the rows of print on a scanned page, by how much ink each pixel row has, and cut them out.

The oldest way of layout analysis (a horizontal projection profile: Nagy, Seth and Viswanathan
1992), enough for upright scans of receipts: rows of print are runs of pixel rows with ink.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.random import Generator
from PIL import Image

MIN_HEIGHT = 7  # pixels; less is a rule or a speck
EDGE = 0.03  # of the width at either side: shadows of the scanner
DARK = 0.65  # of the paper's brightness, or halfway to the print where that is fainter
PRINT = 1.0  # percent of the pixels that are surely print
SPECKS = 1.5  # times the ink of the emptiest pixel rows, which a scan may have everywhere
TALL = 1.7  # times the usual height: rows that touch
MARGIN = 0.15  # of a row's height, above and below
SIDE_MARGIN = 0.5  # of a row's height
ENLARGED = 2.0  # small print gets more patches


class TextRow(NamedTuple):
    """A row of print, enlarged, and where it was."""

    image: Image.Image
    top: int
    bottom: int


def cut_text_rows(
    page: UInt8[np.ndarray, "height width"], rng: Generator | None = None
) -> list[TextRow]:
    """Cut the rows of print out of a page.

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
        columns = np.flatnonzero(dark[top:bottom].any(0))
        side, scale = SIDE_MARGIN * height, ENLARGED
        if rng is not None:
            side, scale = side * rng.uniform(0.3, 1.5), scale * rng.uniform(0.8, 1.1)
            top, bottom = (round(y + rng.uniform(-0.08, 0.08) * height) for y in (top, bottom))
        left, right = columns[0] - side, columns[-1] + side
        top, bottom = max(0, top), min(len(page), bottom)
        box = (max(0, round(left)), top, min(page.shape[1], round(right)), bottom)
        row = Image.fromarray(page).crop(box)
        size = max(1, round(scale * row.width)), max(1, round(scale * row.height))
        found.append(TextRow(row.resize(size, Image.Resampling.BICUBIC), top, bottom))
    return found or [TextRow(Image.fromarray(page), 0, len(page))]


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
    dark = page < max(DARK * paper, (paper + ink) / 2)
    dark[:, :edge] = dark[:, page.shape[1] - edge :] = False
    dark[:, dark.mean(0) > 0.5] = False
    return dark


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
