"""Small pages, drawn: a title with rows of names and values, or with a table.

Print is about as large as in `finetune.tiny.printed`, since that is what the tower has learnt. What
stands on a page comes from `finetune.tiny.page_texts`; here it gets its place.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from finetune.tiny.fonts import Fonts, Split, load_font
from finetune.tiny.page_texts import PageText, random_page_text
from finetune.tiny.printed import damage, paper_and_ink

WIDTHS, HEIGHTS = (200, 340), (100, 230)  # pixels
LARGE_WIDTH, LARGE_HEIGHT = 560, 420  # of a page with more rows and columns, at most
PRINT = (16, 31)  # pixels of the em square, title aside
TITLE_SCALE = 1.25  # at most


class Printed(NamedTuple):
    """Some letters on one row, and where they stand."""

    text: str
    edges: Float[np.ndarray, " characters+1"]
    """Pixel columns between the characters."""
    top: float
    """First pixel row with ink, and the one after the last."""
    bottom: float


class Field(NamedTuple):
    """A name with its value."""

    name: Printed
    """Without the sign after it."""
    sort: str
    """As in `page_texts.FieldText`."""
    value: Printed


class Cell(NamedTuple):
    """A cell of a table, with the label of its row and the head of its column."""

    row: Printed
    column: Printed
    value: Printed


class Page(NamedTuple):
    """What is true of a drawn page.

    Attributes:
        kind: One of `page_texts.KINDS`.
        height: Pixels.
        width: Pixels.
        title: Its first row.
        fields: What is below it, if it is no table.
        cells: Of a table, without header and labels.
        printed: Everything with letters, from top to bottom.
    """

    kind: str
    height: int
    width: int
    title: Printed
    fields: tuple[Field, ...]
    cells: tuple[Cell, ...]
    printed: tuple[Printed, ...]


class _Style(NamedTuple):
    """How a page looks; lengths are shares of the em square."""

    path: Path
    pixels: int
    title_scale: float
    title_align: float
    """0 left, 0.5 middle, 1 right."""
    leading: float
    margin: float
    gap: float
    """Least space between name and value, and between columns."""
    air: float
    """Share of the text's width that is added."""
    mark: str
    """After a name."""
    values: str
    """`after` their names, in a `column`, or at the `right`."""
    dots: bool
    indent: float
    rules: str
    """`none`, below the `title`, below `all` rows, or `frame`."""


class _Text(NamedTuple):
    """A text to be drawn: where it begins, and its base line."""

    text: str
    font: ImageFont.FreeTypeFont
    x: float
    baseline: float


class _Layout(NamedTuple):
    """Where everything stands, before it is drawn.

    Texts are the title and then, row by row, names and values, or the cells of a table.
    """

    texts: list[_Text]
    height: int
    width: int


def random_page(
    rng: Generator, fonts: Fonts, split: Split, kind: str | None = None, *, large: bool = False
) -> tuple[UInt8[np.ndarray, "height width 3"], Page]:
    """Draw a page.

    Args:
        rng: Source of randomness.
        fonts: Fonts to draw from.
        split: Whose words are used.
        kind: One of `page_texts.KINDS`; by default any.
        large: With about twice as many rows, and more columns, in print of the same size.

    Returns:
        The picture, within `WIDTHS` and `HEIGHTS` or `LARGE_WIDTH` and `LARGE_HEIGHT`, and what is
        true of it.
    """
    widest, highest = (LARGE_WIDTH, LARGE_HEIGHT) if large else (WIDTHS[1], HEIGHTS[1])
    while True:
        text = random_page_text(rng, split, kind, large=large)
        style = _random_style(rng, fonts)
        for pixels in range(style.pixels, PRINT[0] - 1, -1):
            layout = _lay_out(text, style._replace(pixels=pixels))
            if layout.height <= highest and layout.width <= widest:
                return _draw(rng, text, style._replace(pixels=pixels), layout)


def _random_style(rng: Generator, fonts: Fonts) -> _Style:
    family = fonts.families[str(rng.choice(list(fonts.families)))]
    return _Style(
        path=family[int(rng.integers(len(family)))],
        pixels=int(rng.integers(PRINT[0] + 2, PRINT[1])),
        title_scale=float(rng.choice([1.0, rng.uniform(1, TITLE_SCALE)])),
        title_align=float(rng.choice([0.0, 0.5, 0.5, 1.0], p=[0.4, 0.25, 0.25, 0.1])),
        leading=float(rng.uniform(1.2, 1.65)),
        margin=float(rng.uniform(0.25, 0.9)),
        gap=float(rng.uniform(0.6, 1.5)),
        air=float(rng.uniform(0, 0.3)),
        mark=str(rng.choice([":", ":", " :", "", "", "."])),
        values=str(rng.choice(["after", "column", "right"], p=[0.35, 0.25, 0.4])),
        dots=bool(rng.random() < 0.15),
        indent=float(rng.choice([0.0, rng.uniform(0, 1.2)])),
        rules=str(rng.choice(["none", "title", "all", "frame"], p=[0.5, 0.25, 0.15, 0.1])),
    )


def _lay_out(text: PageText, style: _Style) -> _Layout:
    font = load_font(style.path, style.pixels)
    em = style.pixels
    title_font = load_font(style.path, round(em * style.title_scale))
    columns = _column_rows(text, style)
    widths = [max(font.getlength(row[i]) for row in columns) for i in range(len(columns[0]))]
    spaces = [0.0, *([style.gap * em] * (len(widths) - 1))]
    starts = np.cumsum([0.0, *widths[:-1]]) + np.cumsum(spaces)
    widest = sum(widths) + sum(spaces)
    is_inline = style.values == "after" and not text.table
    if is_inline:
        widest = max(font.getlength(f"{name} ") + font.getlength(value) for name, value in columns)
    title_width = title_font.getlength(text.title)
    inner = max(widest + style.indent * em, title_width) * (1 + style.air)
    width = max(WIDTHS[0], round(inner + 2 * style.margin * em))
    inner = width - 2 * style.margin * em
    left, first = style.margin * em, style.margin * em + style.indent * em

    baseline = style.margin * em + 0.8 * title_font.size
    x = left + style.title_align * (inner - title_width)
    texts = [_Text(text.title, title_font, x, baseline)]
    baseline += 0.2 * em * (style.title_scale - 1) + 0.15 * em
    for row in columns:
        baseline += style.leading * em
        for i, part in enumerate(row):
            length = font.getlength(part)
            if i == 0:
                x = first
            elif is_inline:
                x = first + font.getlength(f"{row[0]} ")
            elif style.values == "column":
                x = first + starts[i]
            else:  # columns of numbers end alike
                behind = widest - starts[i] - widths[i]  # of the columns after this one
                x = left + inner - behind - length
            texts.append(_Text(part, font, x, baseline))
    height = max(HEIGHTS[0], round(baseline + 0.3 * em + style.margin * em))
    return _Layout(texts, height, width)


def _column_rows(text: PageText, style: _Style) -> list[tuple[str, ...]]:
    if text.table:
        return list(text.table)
    return [(_with_mark(field.name, style.mark), field.value) for field in text.fields]


def _with_mark(name: str, mark: str) -> str:
    return name if name.endswith(".") and mark == "." else name + mark


def _draw(
    rng: Generator, text: PageText, style: _Style, layout: _Layout
) -> tuple[UInt8[np.ndarray, "height width 3"], Page]:
    paper, ink = paper_and_ink(rng)
    picture = Image.new("RGB", (layout.width, layout.height), paper)
    draw = ImageDraw.Draw(picture)
    printed = [_print(draw, each, ink) for each in layout.texts]
    _draw_rules(draw, style, layout, ink)
    if style.dots and style.values == "right" and not text.table:
        _draw_dots(draw, printed[1:], layout, ink)
    title, below = printed[0], printed[1:]
    fields, cells = [], []
    if text.table:
        count = len(text.table[0])
        for r in range(1, len(text.table)):
            for c in range(1, count):
                cells.append(Cell(below[r * count], below[c], below[r * count + c]))
    else:
        for field, name, value in zip(text.fields, below[::2], below[1::2], strict=True):
            fields.append(Field(_cut(name, len(field.name)), field.sort, value))
    page = Page(text.kind, *picture.size[::-1], title, tuple(fields), tuple(cells), tuple(printed))
    return damage(rng, picture), page


def _print(draw: ImageDraw.ImageDraw, text: _Text, ink: tuple[int, int, int]) -> Printed:
    corner = text.x, round(text.baseline) - text.font.getmetrics()[0]
    draw.text(corner, text.text, font=text.font, fill=ink)
    _, top, _, bottom = draw.textbbox(corner, text.text, font=text.font)
    edges = [text.x + text.font.getlength(text.text[:i]) for i in range(len(text.text) + 1)]
    return Printed(text.text, np.asarray(edges), float(top), float(bottom))


def _cut(printed: Printed, length: int) -> Printed:
    return printed._replace(text=printed.text[:length], edges=printed.edges[: length + 1])


def _draw_rules(
    draw: ImageDraw.ImageDraw, style: _Style, layout: _Layout, ink: tuple[int, int, int]
) -> None:
    """Draw lines in the middle between base lines and the capitals below them."""
    baselines = sorted({text.baseline for text in layout.texts})
    margin = 0.5 * style.margin * style.pixels
    wanted = {"title": baselines[:1], "all": baselines[:-1]}.get(style.rules, [])
    for above, below in pairwise(baselines):
        if above in wanted:
            y = below - 0.72 * style.pixels
            y = (above + 0.22 * style.pixels + y) / 2
            draw.line((margin, y, layout.width - margin, y), fill=ink)
    if style.rules == "frame":
        draw.rectangle((1, 1, layout.width - 2, layout.height - 2), outline=ink)


def _draw_dots(
    draw: ImageDraw.ImageDraw,
    below: list[Printed],
    layout: _Layout,
    ink: tuple[int, int, int],
) -> None:
    """Lead the eye from names to their values."""
    for text, name, value in zip(layout.texts[1::2], below[::2], below[1::2], strict=True):
        step = 2 * text.font.getlength(".")
        for x in np.arange(name.edges[-1] + step, value.edges[0] - step, step):
            y = round(text.baseline) - text.font.getmetrics()[0]
            draw.text((x, y), ".", font=text.font, fill=ink)
