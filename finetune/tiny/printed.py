"""Printed training lines: up to 12 characters, in many fonts, as pictures of many sizes.

Everything is a function of a `numpy.random.Generator`, so a seed gives the same picture again.
Pictures are uint8 RGB arrays as a decoder would give them; no resizing happens here.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from finetune.tiny.fonts import Fonts, load_font

MAX_CHARACTERS = 12
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz .,:/-#&%$()'+"

_PLAIN_FAMILIES = ("DejaVu Sans", "Liberation Sans", "Noto Sans", "Open Sans", "Roboto")

_WORDS = (
    "total", "tax", "cash", "change", "invoice", "date", "paid", "price", "amount", "item",
    "table", "order", "number", "name", "page", "phone", "street", "city", "market", "coffee",
    "bread", "milk", "water", "apple", "open", "close", "left", "right", "north", "south",
    "summer", "winter", "monday", "friday", "january", "august", "report", "letter", "ticket",
    "room", "floor", "gate", "train", "hello", "world", "thanks", "please", "green", "orange",
    "silver", "stone", "river", "forest", "music", "paper", "window", "quick", "brown", "jumps",
    "lazy", "zebra", "quiz", "vex", "wharf", "jacket", "pixel", "query", "exam", "keyboard",
    "yoga",
)  # fmt: skip


class Line(NamedTuple):
    """A printed line and where its characters stand."""

    image: UInt8[np.ndarray, "height width 3"]
    text: str
    edges: Float[np.ndarray, " characters+1"]
    """Pixel columns between the characters; character i spans edges[i] to edges[i + 1]."""
    top: float
    """Pixel row of the top of capitals."""
    bottom: float
    """Pixel row of the base line."""


def random_text(rng: Generator, length: int | None = None) -> str:
    """Draw a text as it stands on receipts, labels and forms, 1 to 12 characters of `CHARACTERS`.

    Args:
        rng: Source of randomness.
        length: Wished length; kept where the kind of text allows it, never exceeded.
    """
    limit = length if length is not None else int(rng.integers(1, MAX_CHARACTERS + 1))
    kind = rng.choice(
        ["number", "price", "date", "words", "letters", "code", "any"],
        p=[0.15, 0.13, 0.10, 0.22, 0.13, 0.12, 0.15],
    )
    if kind == "number":
        text = _digits(rng, limit)
    elif kind == "price":
        text = _price(rng)
    elif kind == "date":
        text = _date(rng)
    elif kind == "words":
        text = _words(rng, limit)
    elif kind == "letters":
        text = _cased(rng, _pseudo_word(rng, limit))
    elif kind == "code":
        text = _code(rng, limit)
    else:
        text = "".join(rng.choice(list(CHARACTERS), size=limit))
    text = " ".join(text[:limit].split())
    return text or _digits(rng, limit)


def render_easy_line(rng: Generator, fonts: Fonts, size: tuple[int, int]) -> Line:
    """Draw a long black line on white that fills its picture, in an upright sans serif.

    A tower that starts with lines of every look stays at guessing letters by frequency for
    thousands of steps; after some thousand lines like this it reads, and the rest follows.

    Args:
        rng: Source of randomness.
        fonts: Fonts to draw from; if none is plain enough, all are used.
        size: `(height, width)` of the picture in pixels.
    """
    text = random_text(rng, int(rng.integers(8, MAX_CHARACTERS + 1)))
    style = _Style(fill=float(rng.uniform(0.8, 1.0)), paper=(255, 255, 255), ink=(0, 0, 0))
    return _draw_line(rng, _plain(fonts), size, text, style)


def render_line(
    rng: Generator, fonts: Fonts, size: tuple[int, int] | None = None, text: str | None = None
) -> Line:
    """Draw one printed line, mostly dark on light, often slightly damaged.

    Args:
        rng: Source of randomness.
        fonts: Fonts to draw from.
        size: `(height, width)` of the picture in pixels; by default as `random_line_size`.
        text: What to print, in `CHARACTERS`; by default a text that suits the aspect ratio.

    Returns:
        The picture, its text and the place of each character.
    """
    height, width = size if size is not None else random_line_size(rng)
    if text is None:
        # A line of n characters is about 0.5 n times as wide as high; leave more or less air.
        roomy = width / height / 0.45 * rng.uniform(0.5, 1.1)
        wished = rng.integers(1, MAX_CHARACTERS + 1) if rng.random() < 0.15 else round(roomy)
        text = random_text(rng, int(np.clip(wished, 1, MAX_CHARACTERS)))

    paper, ink = paper_and_ink(rng)
    style = _Style(fill=float(rng.uniform(0.55, 0.95)), paper=paper, ink=ink)
    line = _draw_line(rng, fonts, (height, width), text, style)
    return line._replace(image=damage(rng, Image.fromarray(line.image)))


def render_block(
    rng: Generator, fonts: Fonts, *, easy: bool, size: tuple[int, int] = (128, 128)
) -> list[Line]:
    """Draw a picture full of text: the most characters to learn from for its number of patches.

    Args:
        rng: Source of randomness.
        fonts: Fonts to draw from.
        easy: Black on white in upright sans serifs, undamaged.
        size: `(height, width)` of the picture in pixels.

    Returns:
        Its lines, which all carry the same picture and may be longer than 12 characters.
    """
    height, width = size
    paper, ink = ((255, 255, 255), (0, 0, 0)) if easy else paper_and_ink(rng)
    chosen = _plain(fonts) if easy else fonts
    family = chosen.families[str(rng.choice(list(chosen.families)))]
    pixels = round(float(np.exp(rng.uniform(np.log(14), np.log(56)))))
    font = load_font(family[int(rng.integers(len(family)))], pixels)
    ascent = font.getmetrics()[0]
    leading = pixels * rng.uniform(1.02, 1.35)

    picture = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    placed: list[tuple[str, list[float], float]] = []
    baseline = pixels * rng.uniform(0.75, 1.2)
    while baseline < height - 0.1 * pixels:
        x = float(rng.uniform(0, 0.6 * pixels))
        text = random_text(rng)
        length = font.getlength(text)
        while x + length < width:
            more = " " + random_text(rng)
            text, length = text + more, length + font.getlength(more)
        # Advances one by one: kerning moves an edge by a pixel, and measuring prefixes is slow.
        edges = [x, *(x + np.cumsum([_advance(font, character) for character in text]))]
        fitting = int(np.searchsorted(edges, width, side="right")) - 1
        text, edges = text[:fitting], edges[: fitting + 1]
        draw.text((x, baseline - ascent), text, font=font, fill=ink)
        placed.append((text, edges, baseline))
        baseline += leading
    image = np.array(picture) if easy else damage(rng, picture)
    return [
        Line(image, text, np.asarray(edges), baseline - 0.72 * pixels, baseline)
        for text, edges, baseline in placed
    ]


def random_line_size(rng: Generator) -> tuple[int, int]:
    """Draw the `(height, width)` in pixels of a line picture: cut-out lines and small pages."""
    if rng.random() < 0.07:  # a small landscape page as a PDF renders at 144 dpi, printed large
        return int(rng.choice([100, 128, 144, 160])), int(rng.choice([400, 512, 576, 640]))
    height = int(rng.integers(20, 73))
    aspect = float(np.exp(rng.uniform(np.log(2.0), np.log(9.0))))
    return height, max(32, round(height * aspect))


def damage(rng: Generator, picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Blur, add noise or JPEG artefacts to some pictures; leave others as they are.

    Args:
        rng: Source of randomness.
        picture: RGB picture.
    """
    if rng.random() < 0.15:
        picture = picture.rotate(
            float(rng.normal(0, 0.8)),
            resample=Image.Resampling.BILINEAR,
            fillcolor=picture.getpixel((0, 0)),
        )
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(picture)
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(2, 12), pixels.shape[:2])[..., None]
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(40, 95)))
        pixels = np.asarray(Image.open(buffer))
    return np.array(pixels)


def _plain(fonts: Fonts) -> Fonts:
    """Keep upright sans serifs of normal weight; if there are none, all fonts."""
    plain = {
        name: tuple(path for path in fonts.families[name] if path.stem.endswith("Regular"))
        or fonts.families[name][:1]
        for name in _PLAIN_FAMILIES
        if name in fonts.families
    }
    return Fonts(families=plain or fonts.families)


@lru_cache(maxsize=65_536)
def _advance(font: ImageFont.FreeTypeFont, character: str) -> float:
    return font.getlength(character)


class _Style(NamedTuple):
    fill: float
    """Size of the text as a share of the largest that fits."""
    paper: tuple[int, int, int]
    ink: tuple[int, int, int]


def _draw_line(
    rng: Generator, fonts: Fonts, size: tuple[int, int], text: str, style: _Style
) -> Line:
    height, width = size
    family = fonts.families[str(rng.choice(list(fonts.families)))]
    path = family[int(rng.integers(len(family)))]
    reference = load_font(path, 100)
    largest = min(height / 1.25, 100 * width * 0.96 / max(reference.getlength(text), 1.0))
    font = load_font(path, max(8, round(largest * style.fill)))
    text_width, (ascent, _) = font.getlength(text), font.getmetrics()
    capital_top = ascent - 0.72 * font.size

    x = rng.uniform(0, max(1.0, width - text_width)) if rng.random() < 0.5 else width * 0.03
    capitals = ascent - capital_top
    room = max(height - capitals - 0.3 * font.size, 0.0)  # descenders reach below the base line
    y = float(np.clip(room * rng.normal(0.55, 0.2), 0, room)) - capital_top
    if width - text_width < x:
        x = max(0.0, (width - text_width) / 2)

    picture = Image.new("RGB", (width, height), style.paper)
    ImageDraw.Draw(picture).text((x, y), text, font=font, fill=style.ink)
    edges = [x + font.getlength(text[:i]) for i in range(len(text) + 1)]
    return Line(
        image=np.array(picture),
        text=text,
        edges=np.asarray(edges, dtype=np.float64),
        top=y + capital_top,
        bottom=y + ascent,
    )


def paper_and_ink(rng: Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two colours with clear contrast, mostly dark ink on white paper."""
    if rng.random() < 0.4:
        return (255, 255, 255), (0, 0, 0)
    light = rng.integers(195, 256) + rng.integers(-12, 13, 3)
    dark = rng.integers(0, 80) + rng.integers(-25, 26, 3)
    paper, ink = (dark, light) if rng.random() < 0.2 else (light, dark)
    return _rgb(paper), _rgb(ink)


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue


def _digits(rng: Generator, length: int) -> str:
    return "".join(rng.choice(list("0123456789"), size=max(1, length)))


def _price(rng: Generator) -> str:
    whole = int(10 ** rng.uniform(0, 4.5))
    amount = f"{whole:,}" if rng.random() < 0.4 else str(whole)
    amount += f".{rng.integers(100):02d}"
    return str(rng.choice(["", "", "$", "$ ", "RM ", "EUR ", "+", "-"])) + amount


def _date(rng: Generator) -> str:
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1990, 2031)
    name = str(rng.choice(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Sep", "Oct", "Dec"]))
    return str(
        rng.choice(
            [
                f"{year}-{month:02d}-{day:02d}",
                f"{day:02d}/{month:02d}/{year}",
                f"{day:02d}.{month:02d}.{year % 100:02d}",
                f"{day} {name} {year}",
                f"{rng.integers(24):02d}:{rng.integers(60):02d}",
                f"{rng.integers(24):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}",
            ]
        )
    )


def _words(rng: Generator, limit: int) -> str:
    text = str(rng.choice(_WORDS))
    while len(text) + 3 < limit and rng.random() < 0.7:
        text += str(rng.choice([" ", " ", "-", " & ", ", "])) + str(rng.choice(_WORDS))
    return _cased(rng, text)


def _pseudo_word(rng: Generator, length: int) -> str:
    """Random letters: nothing to be guessed from the neighbours."""
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=max(1, length))
    return "".join(letters)


def _code(rng: Generator, length: int) -> str:
    letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=rng.integers(1, 4)))
    separator = str(rng.choice(["", "-", " ", "/", "#", ":", "."]))
    rest = max(1, length - len(letters) - len(separator))
    number = _digits(rng, int(rng.integers(1, rest + 1)))
    return str(
        rng.choice(
            [letters + separator + number, number + separator + letters, f"#{number}", f"{number}%"]
        )
    )


def _cased(rng: Generator, text: str) -> str:
    return [text, text.upper(), text.title()][int(rng.integers(3))]
