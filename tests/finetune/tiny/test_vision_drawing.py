"""Drawn pictures: the same seed gives the same picture, and the facts told are the facts drawn."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from finetune.tiny import fonts as fonts_module
from finetune.tiny.drawing import (
    COLOURS,
    DIRECTIONS,
    draw_frame,
    random_clip,
    random_motion,
    random_still,
)
from finetune.tiny.fonts import Fonts, find_fonts
from finetune.tiny.printed import (
    CHARACTERS,
    MAX_CHARACTERS,
    random_text,
    render_block,
    render_line,
)


def any_fonts() -> Fonts:
    try:
        return find_fonts("train")
    except FileNotFoundError:
        pytest.skip("no font of the training families is installed")


def centre_of_shape(frame: np.ndarray, colour: str) -> np.ndarray:
    distance = np.abs(frame.astype(int) - np.asarray(COLOURS[colour])).sum(-1)
    return np.argwhere(distance < 60).mean(0)[::-1]  # (x, y)


def test_no_family_is_on_both_sides_of_the_split():
    assert not set(fonts_module.TRAIN_FAMILIES) & set(fonts_module.VALIDATION_FAMILIES)


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts_module, "FONT_DIRECTORIES", (tmp_path,))
    find_fonts.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="None of the 7 font families"):
            find_fonts("validation")
    finally:
        find_fonts.cache_clear()


def test_only_cuts_of_a_family_and_letters_in_plain_ink_are_taken(monkeypatch, tmp_path):
    """`Hack & Slash` is no Hack, and `Intersect` no Inter; letters cut out of a box are signs."""
    taken = ["Hack, Bold", "Roboto Condensed, Italic", "GentiumAlt, Regular", "OCRABold, Bold"]
    left = ["Hack & Slash BRK, Regular", "Hackney, Regular", "OCRA, Inverted Sharp"]
    signs = ["OCR B, Inverted", "OCR B, Outline"]
    for name in taken + left + signs:
        (tmp_path / f"{name}.ttf").touch()

    class Face:
        def __init__(self, path, size):
            self.getname = lambda: tuple(Path(path).stem.split(", "))

    monkeypatch.setattr(fonts_module, "FONT_DIRECTORIES", (tmp_path,))
    monkeypatch.setattr(fonts_module.ImageFont, "truetype", Face)
    find_fonts.cache_clear()
    try:
        found = find_fonts("train").families
        apart = find_fonts("signs").families["OCR B"]
        with pytest.raises(FileNotFoundError):
            find_fonts("validation")
    finally:
        find_fonts.cache_clear()
    assert sorted(path.stem for path in apart) == signs
    assert sorted(path.stem for paths in found.values() for path in paths) == sorted(taken)
    assert sorted(found) == ["Gentium", "Hack", "OCRA", "Roboto"]


@pytest.mark.parametrize("seed", range(5))
def test_texts_stay_short_and_within_the_character_set(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        text = random_text(rng)
        assert 1 <= len(text) <= MAX_CHARACTERS
        assert set(text) <= set(CHARACTERS)
        assert text == text.strip()


def test_a_seed_draws_the_same_line_again():
    first, second = (render_line(np.random.default_rng(3), any_fonts()) for _ in range(2))
    assert first.text == second.text
    assert np.array_equal(first.image, second.image)


@pytest.mark.parametrize("seed", range(8))
def test_ink_lies_between_the_edges_told(seed):
    line = render_line(np.random.default_rng(seed), any_fonts(), size=(64, 400), text="HEM 42")
    paper = np.median(line.image.reshape(-1, 3), axis=0)
    ink = np.abs(line.image - paper).sum(-1) > 200
    columns = np.flatnonzero(ink.any(0))
    slack = 6  # slanted and rotated letters lean out of their box
    assert columns.min() >= line.edges[0] - slack
    assert columns.max() <= line.edges[-1] + slack
    assert len(line.edges) == len(line.text) + 1
    assert np.all(np.diff(line.edges) > 0)
    rows = np.flatnonzero(ink.any(1))
    assert abs(rows.min() - line.top) < 12
    assert abs(rows.max() - line.bottom) < 12


@pytest.mark.parametrize("seed", range(12))
def test_the_shape_moves_the_way_the_facts_say(seed):
    frames, facts = random_clip(np.random.default_rng(seed))
    assert 8 <= len(frames) <= 16
    assert frames.dtype == np.uint8
    shift = centre_of_shape(frames[-1], facts["colour"]) - centre_of_shape(
        frames[0], facts["colour"]
    )
    direction = np.asarray(DIRECTIONS[facts["direction"]])
    if facts["direction"] == "still":
        assert np.abs(shift).max() < 1
    else:
        assert shift @ direction / np.linalg.norm(shift) > 0.95


def test_a_shape_never_leaves_the_frame():
    rng = np.random.default_rng(0)
    for _ in range(100):
        motion = random_motion(rng, (90, 160))
        for index in (0, motion.num_frames - 1):
            x = motion.start[0] + index * motion.step[0]
            y = motion.start[1] + index * motion.step[1]
            assert motion.radius - 1e-6 <= x <= 160 - motion.radius + 1e-6
            assert motion.radius - 1e-6 <= y <= 90 - motion.radius + 1e-6


def test_frames_can_be_drawn_alone_and_in_any_order():
    motion = random_motion(np.random.default_rng(5))._replace(noise=0.0)
    frames = [draw_frame(np.random.default_rng(i), motion, 3) for i in range(2)]
    assert np.array_equal(*frames)


def test_a_still_has_the_size_asked_for():
    picture, facts = random_still(np.random.default_rng(0), (70, 90))
    assert picture.shape == (70, 90, 3)
    assert set(facts) == {"colour", "shape"}


@pytest.mark.parametrize("easy", [True, False])
def test_lines_of_a_block_stand_below_each_other_and_inside_the_picture(easy):
    lines = render_block(np.random.default_rng(1), any_fonts(), easy=easy)
    assert len(lines) > 1
    for upper, lower in pairwise(lines):
        assert upper.bottom < lower.bottom
        assert upper.image is lower.image
    for line in lines:
        assert set(line.text) <= set(CHARACTERS)
        assert 0 <= line.edges[0] <= line.edges[-1] <= 128
