"""Rows of print: all of them, once, in order, with their ink inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.recipes.text_rows import ENLARGED, cut_text_rows, find_text_rows


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
    page[page < 100] = 200  # on paper of 245
    assert len(find_text_rows(page)) == 2


def test_a_scan_with_specks_everywhere_still_has_its_rows():
    page = printed([(50, 66), (90, 106)])
    specks = np.random.default_rng(1).random(page.shape) < 0.04
    page[specks] = 30
    assert len(find_text_rows(page)) == 2


@pytest.mark.parametrize("rng", [None, np.random.default_rng(1)])
def test_a_cut_row_holds_its_ink_and_is_enlarged(rng):
    page = printed([(20, 36), (60, 76)])
    rows = cut_text_rows(page, rng)
    assert all(row.top < middle < row.bottom for row, middle in zip(rows, (28, 68), strict=True))
    for row in rows:
        pixels = np.asarray(row.image)
        assert 0.75 * ENLARGED * 140 < pixels.shape[1] < 1.15 * ENLARGED * (140 + 3 * 22)
        assert pixels.min() < 60
    [whole] = cut_text_rows(np.full((40, 50), 250, np.uint8), rng)
    assert whole.image.size == (50, 40)


def test_nothing_is_cut_from_outside_the_page():
    page = printed([(0, 16), (384, 400)])
    page = np.where(page == 245, 200, 110).astype(np.uint8)  # outside would be black
    for seed in range(10):
        for row in cut_text_rows(page, np.random.default_rng(seed)):
            assert 0 <= row.top < row.bottom <= len(page)
            assert np.asarray(row.image).min() > 60
