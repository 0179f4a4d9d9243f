"""Bands: strips across a page with a long line or a few, drawn or cut from real receipts.

A page of small print is shown to a small model as a row of bands, each with its letters at a size
that can be read. A line belongs to the band that its middle lies in; what a band shows of its
neighbours is not read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw

from finetune.tiny.fonts import Fonts, load_font
from finetune.tiny.printed import damage, paper_and_ink, random_text
from finetune.tiny.receipts import Crop, Page, text_between

SEVERAL_SHARE = 0.15  # of the bands have more than one line
MAX_SCALE = 2.2  # by which small print is enlarged
MAX_LETTERS = 140  # of a band; beyond that lines are too small for the patches that it gets


class Band(NamedTuple):
    """A strip of a page and what is printed in it, a line of text for each printed line."""

    image: UInt8[np.ndarray, "height width 3"]
    text: str
    edges: Float[np.ndarray, " characters+1"] | None
    """Shares of the width between the characters of the only line, where they are known."""


def render_band(rng: Generator, fonts: Fonts) -> Band:
    """Draw a band of random words, numbers and codes, as on receipts, labels and letters.

    Args:
        rng: Source of randomness.
        fonts: Fonts to draw from.
    """
    while True:
        band = _render(rng, fonts)
        if 0 < len(band.text) <= MAX_LETTERS:
            return band


def cut_band(rng: Generator, page: Page) -> Band | None:
    """Cut a band from a receipt, below all that is reserved.

    Args:
        rng: Source of randomness.
        page: A receipt.

    Returns:
        The band, or None where the chosen place has no text or too much.
    """
    lines = [line for line in page.lines if line.box[1] >= page.reserved_until]
    if not lines:
        return None
    lengths = np.asarray([len(line.text) for line in lines], float)  # long ones are harder to read
    left, top, right, bottom = lines[int(rng.choice(len(lines), p=lengths / lengths.sum()))].box
    height = bottom - top
    above, below = rng.uniform(-0.05, 0.3, 2) * height
    if rng.random() < SEVERAL_SHARE:
        above, below = rng.uniform(0.0, 1.2, 2) * height
    top, bottom = max(page.reserved_until, round(top - above)), round(bottom + below)
    if rng.random() < 0.6:  # across the page, as a page is cut; else this line alone
        left, right = 0, page.image.shape[1]
    else:
        left, right = max(0, round(left - rng.uniform(0, height))), round(right + 0.3 * height)
    inside = [line for line in page.lines if line.box[0] < right and line.box[2] > left]
    text = text_between(inside, top, bottom)
    if not 0 < len(text) <= MAX_LETTERS:
        return None
    edges = None
    if "\n" not in text:
        pieces = [line for line in inside if top <= (line.box[1] + line.box[3]) / 2 < bottom]
        edges = ((_edges(pieces) - left) / (right - left)).clip(0, 1)
    grey = Image.fromarray(page.image[top:bottom, left:right])
    if rng.random() < 0.7:
        scale = float(rng.uniform(1, MAX_SCALE))
        size = round(scale * grey.width), round(scale * grey.height)
        grey = grey.resize(size, Image.Resampling.BICUBIC)
    return Band(np.asarray(grey.convert("RGB")), text, edges)


def _edges(pieces: Sequence[Crop]) -> Float[np.ndarray, " characters+1"]:
    """Columns between the characters of a line, spaces between its pieces among them.

    Args:
        pieces: Typewritten, or nearly.
    """
    ordered = sorted(pieces, key=lambda piece: piece.box[0])
    return np.concatenate(
        [np.linspace(piece.box[0], piece.box[2], len(piece.text) + 1) for piece in ordered]
    )


def _render(rng: Generator, fonts: Fonts) -> Band:
    family = fonts.families[str(rng.choice(list(fonts.families)))]
    pixels = round(float(np.exp(rng.uniform(np.log(14), np.log(40)))))
    font = load_font(family[int(rng.integers(len(family)))], pixels)
    ascent = font.getmetrics()[0]
    leading = pixels * rng.uniform(1.1, 1.6)
    several = rng.random() < SEVERAL_SHARE
    height = round(leading * (rng.uniform(1.2, 3.2) if several else rng.uniform(0.95, 1.3)))
    width = round(pixels * rng.uniform(7, 26))
    centred, upper = rng.random() < 0.4, rng.random() < 0.6
    paper, ink = paper_and_ink(rng)

    picture = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    read, edges = [], None
    baseline = pixels * rng.uniform(0.75, 1.1) - (leading if rng.random() < 0.5 else 0)
    if several:
        baseline = rng.uniform(-0.3, 1.0) * leading
    while baseline < height + pixels:
        room = width * rng.uniform(0.3, 0.97)
        text = random_text(rng)
        while font.getlength(text) < room:
            text += str(rng.choice([" ", " ", " ", ", ", ",", "-"])) + random_text(rng)
        text = text.upper() if upper else text
        while font.getlength(text) > room and len(text) > 1:
            text = text[:-1].rstrip()
        spare = max(0.0, width - font.getlength(text))
        x = spare / 2 if centred else min(spare, rng.exponential(0.5 * pixels))
        draw.text((x, baseline - ascent), text, font=font, fill=ink)
        if 0 <= baseline - 0.36 * pixels < height:
            read.append(text)
            widths = [font.getlength(text[:i]) for i in range(len(text) + 1)]
            edges = (x + np.asarray(widths)) / width
        baseline += leading
    return Band(damage(rng, picture), "\n".join(read), edges if len(read) == 1 else None)
