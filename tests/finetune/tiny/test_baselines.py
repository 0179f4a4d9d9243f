"""Baselines answer the questions of the table: with their own means, and judged alike."""

import io
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from finetune.tiny import baselines
from finetune.tiny.abilities import ABILITIES
from finetune.tiny.audio_data import Clip
from finetune.tiny.baselines import (
    answer_by_nearest,
    answer_constantly,
    find_with_tesseract,
    hear_with_pocketsphinx,
    measure,
    read_with_tesseract,
)
from finetune.tiny.cases import Case
from finetune.tiny.fonts import find_fonts, load_font
from finetune.tiny.turns import Turn
from finetune.tiny.vision_data import PHOTO_CLASSES
from omni.errors import RequestError


def case(task: str, answer: str, source: bytes = b"") -> Case:
    return Case([source], [Turn(task, "?", answer)])


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_constant_answer_is_the_most_frequent_one(tmp_path):
    cases = [case("colour", answer) for answer in ("Red.", "Blue.", "Red.")]
    assert answer_constantly("colour", cases, tmp_path) == ["Red."] * 3
    found = dict(measure({"colour": cases}, tmp_path))
    assert found["colour"].name == "best constant answer"
    assert found["colour"].mean == pytest.approx(2 / 3)
    assert found["colour"].low < 2 / 3 < found["colour"].high


def test_the_nearest_example_names_what_is_like_it(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10)
    monkeypatch.setattr(baselines, "cifar_arrays", lambda data, split: (pictures, labels))
    asked = [case("object", "", png(pictures[i] // 2 + 60)) for i in (3, 8)]
    found = answer_by_nearest("object", asked, tmp_path)
    assert found == [PHOTO_CLASSES[3], PHOTO_CLASSES[8]]


def test_the_constant_answer_is_judged_with_the_tolerance_of_the_task(tmp_path):
    times = ("At 0.5 seconds.", "At 0.5 seconds.", "At 1.0 seconds.", "At 1.5 seconds.")
    found = answer_constantly("when", [case("when", answer) for answer in times], tmp_path)
    assert found == ["At 1.0 seconds."] * 4  # within half a second of all


def test_the_nearest_recording_names_what_sounds_like_it(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tones = [np.sin(np.arange(8_000) * hertz / 2_500).astype(np.float32) for hertz in (200, 900)]
    clips = [Clip(tone, word, "fsdd") for tone, word in zip(tones, ("two", "six"), strict=True)]
    monkeypatch.setattr(baselines, "load_clips", lambda data, split: clips)
    buffer = io.BytesIO()
    noisy = tones[1] * 0.5 + rng.normal(0, 0.01, 8_000)
    soundfile.write(buffer, noisy, 16_000, format="WAV", subtype="PCM_16")
    asked = [case("digit", "", buffer.getvalue())]
    assert answer_by_nearest("digit", asked, tmp_path) == ["six"]


def test_reading_hearing_and_choosing_have_the_baselines_that_suit_them():
    asked = {b.name: set(b.abilities) for b in baselines.baselines()}
    assert asked["tesseract"] == {"line", "line_signs", "receipt_line", "band"}
    assert {"page_field", "receipt_total"} < asked["tesseract reads it"]
    assert asked["pocketsphinx"] == {"digit", "digit_commands", "word"}
    assert asked["nearest example"] == {"object", "handwritten"} | asked["pocketsphinx"]
    assert {"count", "when", "direction"} <= asked["best constant answer"] < set(ABILITIES)


def test_a_tesseract_that_fails_is_no_bad_reader(tmp_path):
    if not shutil.which("tesseract"):
        pytest.skip("tesseract is not installed")
    with pytest.raises(RequestError, match="tesseract failed"):
        read_with_tesseract("line", [case("line", "A", b"no picture")], tmp_path)


def test_a_baseline_that_is_not_installed_is_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines.shutil, "which", lambda program: None)
    [tesseract] = [b for b in baselines.baselines() if b.name == "tesseract"]
    assert tesseract.missing == "the program tesseract (apt install tesseract-ocr)"
    assert list(measure({"line": [case("line", "A")]}, tmp_path)) == []


def test_tesseract_reads_a_line(tmp_path):
    if not shutil.which("tesseract"):
        pytest.skip("tesseract is not installed")
    try:
        family = next(iter(find_fonts("train").families.values()))
    except FileNotFoundError:
        pytest.skip("fonts are not installed")
    from PIL import ImageDraw

    picture = Image.new("RGB", (400, 60), "white")
    ImageDraw.Draw(picture).text((10, 10), "INVOICE 2048", font=load_font(family[0], 32), fill=0)
    assert read_with_tesseract("line", [case("line", "", png(np.asarray(picture)))], tmp_path) == [
        "INVOICE 2048"
    ]


def test_who_reads_a_page_is_right_where_the_reading_holds_the_value(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "read_with_tesseract", lambda *args: ["Total 12.50\nNo 31"] * 3)
    asked = [case("field", answer) for answer in ("12.50", "3", "31")]
    assert find_with_tesseract("page_field", asked, tmp_path) == ["12.50", "", "31"]


@pytest.mark.parametrize(
    ("task", "answer", "reading", "holds"),
    [
        ("amount", "RM 1,204.50", "TOTAL 1204.50 CASH", True),
        ("amount", "RM 1,204.50", "TOTAL 204.50 CASH", False),
        ("day", "05/03/2018", "DATE: 5 MAR 2018 12:30", True),
        ("day", "05/03/2018", "DATE: 06/03/2018", False),
    ],
)
def test_amounts_and_dates_may_stand_in_any_form(
    tmp_path, monkeypatch, task, answer, reading, holds
):
    monkeypatch.setattr(baselines, "read_with_tesseract", lambda *args: [reading])
    found = find_with_tesseract("receipt_total", [case(task, answer)], tmp_path)
    assert found == [answer if holds else ""]


def test_pocketsphinx_says_a_word_of_its_grammar_or_nothing(tmp_path):
    pytest.importorskip("pocketsphinx")
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, 8_000)
    soundfile.write(buffer, noise, 16_000, format="WAV", subtype="PCM_16")
    [said] = hear_with_pocketsphinx("digit", [case("digit", "One.", buffer.getvalue())], tmp_path)
    assert said in ("", *baselines.DIGITS)
