"""Quality against tokens as a picture: which reducers are worth their tokens."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.bench.reduce import NONE, Row

WIDTH, HEIGHT, MARGIN = 900, 560, 70
INK, FAINT, FRONT, OTHER = "#1a1a1a", "#c9c9c9", "#0b5cad", "#8a4b00"


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats in tokens without losing quality, fewest tokens first.

    Args:
        rows: Of one task.
    """

    def beaten(row: Row) -> bool:
        return any(
            other.tokens <= row.tokens
            and other.quality.mean >= row.quality.mean
            and (other.tokens, other.quality.mean) != (row.tokens, row.quality.mean)
            for other in rows
        )

    return sorted((row for row in rows if not beaten(row)), key=lambda row: row.tokens)


def draw_pareto(rows: Sequence[Row], path: Path) -> None:
    """Draw one task: a dot with its 95 % interval for every reducer, the front joined by a line.

    Args:
        rows: Of one task.
        path: PNG file to write.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    most = max(row.tokens for row in rows)
    low = min(min(row.quality.low for row in rows), 0.0)

    def x(tokens: float) -> float:
        return MARGIN + tokens / most * (WIDTH - 2 * MARGIN - 90)

    def y(quality: float) -> float:
        return HEIGHT - MARGIN - (quality - low) / (1 - low) * (HEIGHT - 2 * MARGIN)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        level, count = low + share * (1 - low), share * most
        draw.line([(MARGIN, y(level)), (WIDTH - MARGIN, y(level))], fill=FAINT)
        draw.text((MARGIN - 12, y(level)), f"{100 * level:.0f}", INK, font, anchor="rm")
        draw.text((x(count), HEIGHT - MARGIN + 10), f"{count:.0f}", INK, font, anchor="mt")
    draw.text((MARGIN, 24), f"{rows[0].task}: quality (100 is best), 95 % intervals", INK, font)
    draw.text((WIDTH / 2, HEIGHT - 24), "media tokens of a request, median", INK, font, anchor="mm")

    front = pareto_front(rows)
    draw.line([(x(row.tokens), y(row.quality.mean)) for row in front], fill=FRONT, width=2)
    taken: list[tuple[float, float]] = []
    for row in sorted({row.spec: row for row in rows}.values(), key=lambda row: -row.quality.mean):
        colour = FRONT if row in front else OTHER
        place = (x(row.tokens), y(row.quality.mean))
        draw.line([(place[0], y(row.quality.low)), (place[0], y(row.quality.high))], fill=colour)
        draw.ellipse([place[0] - 4, place[1] - 4, place[0] + 4, place[1] + 4], fill=colour)
        name = "none" if row.spec == NONE else re.sub(r"(\.\d+?)0+\)", r"\1)", row.spec)
        level = place[1] - 8
        for beside, used in taken:  # names of neighbours stand below each other
            if abs(beside - place[0]) < 130 and abs(used - level) < 16:
                level = used + 16
        taken.append((place[0], level))
        draw.text((place[0] + 8, level), name, colour, font)
    picture.save(path)
