"""Rows of print: all of them, once, in order, with their ink inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tiny.text_rows import ENLARGED, LONGEST, cut_text_rows, find_text_rows


def printed(rows, width=300, height=400, seed=0):
    """A page with half ink between the given heights."""
    rng = np.random.default_rng(seed)
    page = np.full((height, width), 245, np.uint8)
    for top, bottom in rows:
        page[top:bottom, 60:200] = np.where(rng.random((bottom - top, 140)) < 0.5, 30, 245)
    return page


@given(heights=st.lists(st.integers(14, 20), min_size=1, max_size=8), gap=st.integers(6, 14))
@settings(max_examples=30)
def test_every_row_is_found_once_and_whole(heights, gap):
    tops = [20 + sum(heights[:i]) + gap * i for i in range(len(heights))]
    rows = [(top, top + height) for top, height in zip(tops, heights, strict=True)]
    found = find_text_rows(printed(rows))
    assert len(found) == len(rows)
    for (top, bottom), (first, last) in zip(rows, found, strict=True):
        assert top - 6 <= first <= top + 1
        assert bottom - 1 <= last <= bottom + 6


def test_rows_that_touch_are_cut_where_ink_is_least():
    page = printed([(20, 36), (60, 76), (100, 116), (116, 132)])
    page[115:117, 60:198] = 245  # a tail of a letter bridges the two
    assert len(find_text_rows(page)) == 4


def test_frames_and_specks_are_no_print():
    page = printed([(50, 66)])
    page[:, 30:33] = 10  # a fold from top to bottom
    page[200:203, 80:82] = 10
    assert len(find_text_rows(page)) == 1
    assert find_text_rows(np.full((40, 40), 250, np.uint8)) == []


def test_faint_print_is_found():
    page = printed([(50, 66), (90, 106)])
    page[page < 100] = 190  # on paper of 245
    assert len(find_text_rows(page)) == 2


def test_a_scan_with_specks_everywhere_still_has_its_rows():
    page = printed([(50, 66), (90, 106)])
    specks = np.random.default_rng(1).random(page.shape) < 0.04
    page[specks] = 30
    assert len(find_text_rows(page)) == 2


def words(widths, gap=8, top=20, height=16):
    """A page with one row of solid words."""
    page = np.full((60, 400), 245, np.uint8)
    left, places = 30, []
    for width in widths:
        page[top : top + height, left : left + width] = 30
        places.append((left, left + width))
        left += width + gap
    return page, places


def test_a_blank_page_has_no_rows_however_its_paper_is_shaded_and_two_rows_survive_noise():
    rng = np.random.default_rng(0)
    paper = np.linspace(250, 205, 1000)[:, None] + rng.normal(0, 2, (1000, 700))
    assert find_text_rows(paper.astype(np.uint8)) == []
    noisy = 245 + rng.normal(0, 6, (1000, 700))
    for top in (100, 300):
        noisy[top : top + 16, 100:300] = np.where(rng.random((16, 200)) < 0.5, 30, 245)
    assert len(find_text_rows(noisy.clip(0, 255).astype(np.uint8))) == 2


@pytest.mark.parametrize("rng", [None, np.random.default_rng(1)])
def test_a_short_row_is_one_piece_that_holds_its_ink_and_is_enlarged(rng):
    page = printed([(20, 36), (60, 76)])
    page[:, 120:] = 245  # 60 columns of ink
    rows = cut_text_rows(page, rng)
    assert all(row.top < middle < row.bottom for row, middle in zip(rows, (28, 68), strict=True))
    for row in rows:
        [piece] = row.pieces
        pixels = np.asarray(piece)
        assert 0.75 * ENLARGED * 60 < pixels.shape[1] < 1.15 * ENLARGED * (60 + 3 * 22)
        assert pixels.min() < 60
    [whole] = cut_text_rows(np.full((40, 50), 250, np.uint8), rng)
    assert [piece.size for piece in whole.pieces] == [(50, 40)]


@given(widths=st.lists(st.integers(8, 60), min_size=2, max_size=6))
@settings(max_examples=30)
def test_long_rows_are_cut_between_words_and_every_word_is_in_one_piece(widths):
    page, places = words(widths)
    [row] = cut_text_rows(page)
    height = row.bottom - row.top
    inked = [int((np.asarray(piece) < 130).any(0).sum()) for piece in row.pieces]
    assert sum(inked) == pytest.approx(ENLARGED * sum(widths), abs=3 * len(widths))
    whole = {ENLARGED * sum(widths[i:j]) for i in range(len(widths)) for j in range(i + 1, 7)}
    assert all(min(abs(ink - some) for some in whole) <= 3 * len(widths) for ink in inked)
    total = places[-1][1] - places[0][0]
    assert (len(row.pieces) > 1) == (total > LONGEST * height)
    assert all(piece.width <= ENLARGED * (LONGEST + 2) * height for piece in row.pieces)


def test_a_word_that_is_longer_than_a_piece_stays_whole():
    page, _ = words([300])
    [row] = cut_text_rows(page)
    assert len(row.pieces) == 1


def test_nothing_is_cut_from_outside_the_page():
    page = printed([(0, 16), (384, 400)])
    page = np.where(page == 245, 200, 110).astype(np.uint8)  # outside would be black
    for seed in range(10):
        for row in cut_text_rows(page, np.random.default_rng(seed)):
            assert 0 <= row.top < row.bottom <= len(page)
            assert min(np.asarray(piece).min() for piece in row.pieces) > 60
