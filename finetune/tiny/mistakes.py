"""Draw the pictures behind some wrong answers, for the model card.

Only what this project drew itself and MNIST's digits: photographs and receipts of others are not
shown.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from finetune.tiny.cases import make_cases

SHOWN = ("handwritten", "line", "still", "count", "position", "attribute", "page_field")
MOST = 2  # of an ability
COLUMNS, WIDTH, HEIGHT, CAPTION, MARGIN = 3, 300, 150, 64, 12  # pixels but the first
FONT_SIZE = 13


def draw_mistakes(evaluation: dict[str, Any], data: Path) -> Image.Image | None:
    """Draw a sheet of pictures with what was asked, what is true and what was said.

    Args:
        evaluation: What `omni eval tiny --json` printed.
        data: Folder of the training data, as in that evaluation.

    Returns:
        The sheet; None if there was no mistake to show.
    """
    rows = {row["ability"]: row["failures"][:MOST] for row in evaluation["abilities"]}
    wrong = {ability: rows[ability] for ability in SHOWN if rows.get(ability)}
    cases = make_cases(data, evaluation["limit"], abilities=list(wrong))
    tiles = [
        _tile(cases[ability][place].sources[0], (question, f"true: {truth}", f"said: {said}"))
        for ability, failures in wrong.items()
        for question, truth, said, place in failures
    ]
    return _sheet(tiles) if tiles else None


def _tile(source: bytes, lines: Sequence[str]) -> Image.Image:
    tile = Image.new("RGB", (WIDTH, HEIGHT + CAPTION), "white")
    with Image.open(io.BytesIO(source)) as picture:
        scale = min(WIDTH / picture.width, HEIGHT / picture.height)
        size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    tile.paste(shown, ((WIDTH - shown.width) // 2, (HEIGHT - shown.height) // 2))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(lines):
        text = " ".join(line.split())
        while draw.textlength(text, font=font) > WIDTH:
            text = f"{text[:-4]}..."
        draw.text((0, HEIGHT + 4 + 19 * number), text, font=font, fill="black")
    return tile


def _sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    width, height = WIDTH + MARGIN, HEIGHT + CAPTION + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + i % COLUMNS * width, MARGIN + i // COLUMNS * height))
    return sheet
