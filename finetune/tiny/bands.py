"""Bands: strips across a page with one to three long lines, drawn or cut from real receipts.

A page of small print is shown to a small model as a row of bands, each with its letters at a size
that can be read. A line belongs to the band that its middle lies in; what a band shows of its
neighbours is not read.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw

from finetune.tiny.fonts import Fonts, load_font
from finetune.tiny.printed import damage, paper_and_ink, random_text
from finetune.tiny.receipts import Page, text_between

MAX_LETTERS = 140  # of a band; beyond that lines are too small for the patches that it gets


class Band(NamedTuple):
    """A strip of a page and what is printed in it, a line of text for each printed line."""

    image: UInt8[np.ndarray, "height width 3"]
    text: str


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
    left, top, right, bottom = lines[int(rng.integers(len(lines)))].box
    height = bottom - top
    above, below = rng.uniform(0.0, 1.2, 2) * height
    if rng.random() < 0.4:  # one line alone, and closely cut
        above, below = rng.uniform(-0.05, 0.25, 2) * height
        left, right = (round(x) for x in (left - rng.uniform(0, height), right + 0.3 * height))
    else:
        margin = float(rng.choice([0.0, rng.uniform(0, 2)])) * height
        left = 0 if margin == 0 else round(min(line.box[0] for line in lines) - margin)
        right = (
            page.image.shape[1]
            if margin == 0
            else round(max(line.box[2] for line in lines) + margin)
        )
    top, bottom = max(page.reserved_until, round(top - above)), round(bottom + below)
    left, right = max(left, 0), min(right, page.image.shape[1])
    inside = [line for line in page.lines if line.box[0] < right and line.box[2] > left]
    text = text_between(inside, top, bottom)
    if not 0 < len(text) <= MAX_LETTERS:
        return None
    grey = page.image[top:bottom, left:right]
    return Band(np.repeat(grey[..., None], 3, axis=-1), text)


def _render(rng: Generator, fonts: Fonts) -> Band:
    family = fonts.families[str(rng.choice(list(fonts.families)))]
    pixels = round(float(np.exp(rng.uniform(np.log(14), np.log(40)))))
    font = load_font(family[int(rng.integers(len(family)))], pixels)
    ascent = font.getmetrics()[0]
    leading = pixels * rng.uniform(1.05, 1.6)
    height, width = round(leading * rng.uniform(1.1, 3.2)), round(pixels * rng.uniform(7, 26))
    centred, upper = rng.random() < 0.4, rng.random() < 0.6
    paper, ink = paper_and_ink(rng)

    picture = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    read = []
    baseline = rng.uniform(-0.3, 1.0) * leading
    while baseline < height + pixels:
        room = width * rng.uniform(0.3, 0.97)
        text = random_text(rng)
        while font.getlength(text) < room:
            text += str(rng.choice([" ", " ", " ", ", ", ",", "-"])) + random_text(rng)
        while font.getlength(text) > room and len(text) > 1:
            text = text[:-1].rstrip()
        text = text.upper() if upper else text
        spare = max(0.0, width - font.getlength(text))
        x = spare / 2 if centred else min(spare, rng.exponential(0.5 * pixels))
        draw.text((x, baseline - ascent), text, font=font, fill=ink)
        if 0 <= baseline - 0.36 * pixels < height:
            read.append(text)
        baseline += leading
    return Band(damage(rng, picture), "\n".join(read))
