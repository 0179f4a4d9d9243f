"""Bands: what is read is what lies in them, and nothing of what is reserved."""

import numpy as np
import pytest

from finetune.tiny import bands
from finetune.tiny.bands import MAX_LETTERS, cut_band, render_band
from finetune.tiny.fonts import find_fonts
from finetune.tiny.receipts import Crop, Page, text_between


@pytest.fixture
def page() -> Page:
    """A page whose line i has the grey value 100 + i everywhere, and company above row 60."""
    image = np.full((400, 300), 255, np.uint8)
    lines = []
    for i in range(12):
        box = (10, 20 + 30 * i, 250, 40 + 30 * i)
        image[box[1] : box[3], box[0] : box[2]] = 100 + i
        lines.append(Crop(image, box, "SHOP" if i == 0 else f"LINE {i}"))
    return Page(image, tuple(lines), "SHOP", 60)


def test_a_cut_band_reads_the_lines_whose_middle_it_shows_and_never_what_is_reserved(
    page, monkeypatch
):
    monkeypatch.setattr(bands, "MAX_SCALE", 1.0)  # grey values stay
    rng = np.random.default_rng(0)
    found = [band for _ in range(600) if (band := cut_band(rng, page)) is not None]
    assert len(found) > 200
    counts = set()
    for band in found:
        middle = band.image[:, band.image.shape[1] // 2, 0]
        shown = {int(v) - 100: np.count_nonzero(middle == v) for v in np.unique(middle) if v < 112}
        read = {int(line.split()[1]) for line in band.text.split("\n")}
        assert {i for i, rows in shown.items() if rows > 10} <= read <= set(shown)
        assert 0 not in shown
        counts.add(len(read))
    assert counts >= {1, 2, 3}


def test_pieces_at_one_height_are_one_line_from_left_to_right(page):
    pieces = [
        Crop(page.image, (200, 11, 260, 31), "8.00"),
        Crop(page.image, (10, 14, 90, 34), "CHANGE :"),
        Crop(page.image, (10, 40, 90, 60), "THANK YOU"),
    ]
    assert text_between(pieces, 0, 100) == "CHANGE : 8.00\nTHANK YOU"
    assert text_between(pieces, 30, 100) == "THANK YOU"
    assert text_between(pieces, 60, 100) == ""


def test_the_places_of_a_line_in_pieces_leave_out_what_is_between_them(page, monkeypatch):
    monkeypatch.setattr(bands, "SEVERAL_SHARE", 0.0)
    line = (
        Crop(page.image, (10, 300, 90, 320), "CHANGE :"),
        Crop(page.image, (200, 302, 240, 322), "8.00"),
    )
    rng = np.random.default_rng(0)
    found = [cut_band(rng, page._replace(lines=line)) for _ in range(40)]
    both = [band for band in found if band and band.text == "CHANGE : 8.00"]
    assert both
    for band in both:
        assert len(band.edges) == len(band.text) + 1
        widths = np.diff(band.edges)
        pixels = (band.edges[-1] - band.edges[0]) / 230  # what the boxes span, in shares
        np.testing.assert_allclose(widths[:8], 10 * pixels, atol=1e-6)
        np.testing.assert_allclose(widths[8], 110 * pixels, atol=1e-6)
        np.testing.assert_allclose(widths[9:], 10 * pixels, atol=1e-6)


def test_drawn_bands_are_repeatable_varied_and_within_their_length():
    fonts = find_fonts("train")
    drawn = [render_band(np.random.default_rng(seed), fonts) for seed in range(60)]
    again = render_band(np.random.default_rng(7), fonts)
    assert again.text == drawn[7].text
    np.testing.assert_array_equal(again.image, drawn[7].image)
    assert {band.text.count("\n") for band in drawn} >= {0, 1, 2}
    assert max(len(band.text) for band in drawn) <= MAX_LETTERS
    assert any(len(line) > 20 for band in drawn for line in band.text.split("\n"))
