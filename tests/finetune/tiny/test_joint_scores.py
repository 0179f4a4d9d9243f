"""Answers are judged by the word that counts, and shares come with honest intervals."""

import io
import re

import numpy as np
import pytest
import typer
from PIL import Image

from finetune.cli import register
from finetune.tiny import mistakes
from finetune.tiny.card import percent_down, percent_up, score_rows
from finetune.tiny.evaluate import (
    ABILITIES,
    Case,
    OtherScore,
    as_file,
    as_json,
    bootstrap_error,
    summarise,
    wilson_interval,
)
from finetune.tiny.score import named, score_answer
from finetune.tiny.subjects import Subject
from finetune.tiny.turns import Turn
from omni.errors import RequestError
from omni.media import load_media


@pytest.mark.parametrize(
    ("task", "true", "answer", "score"),
    [
        ("digit", "Seven.", "Seven.", 1),
        ("digit", "Seven.", "I hear the digit 7.", 1),
        ("digit", "Seven.", "Seven or nine.", 0),
        ("digit", "Seven.", "", 0),
        ("digits", "Six, zero, five.", "six zero five", 1),
        ("digits", "Six, zero, five.", "Zero, six, five.", 0),
        ("word", "Marvin.", "marvin", 1),
        ("word", "No word is spoken.", "No word is spoken.", 1),
        ("word", "No word is spoken.", "No.", 0),
        ("object", "Cat.", "It is a cat.", 1),
        ("object", "Cat.", "A cat and a dog.", 0),
        ("direction", "Up left.", "left, up", 1),
        ("direction", "Up left.", "Up.", 0),
        ("direction", "It stands still.", "It stands still.", 1),
        ("direction", "It stands still.", "Left.", 0),
        ("shape_colour", "Red circle.", "Red circle.", 1),
        ("shape_colour", "Red circle.", "Red square.", 0),
        ("line", "AB12", "AB12", 0),
        ("line", "AB12", "AB1", 0.25),
        ("name", "", "I am omni-tiny. I can name spoken digits.", 1),
        ("name", "", "I can name spoken digits.", 0),
        ("abilities", "", "I can read short printed lines.", 1),
        ("abilities", "", "Seven.", 0),
    ],
)
def test_answers_are_judged_by_the_words_that_count(task, true, answer, score):
    assert score_answer(Turn(task, "?", true), answer) == score


def test_figures_count_as_number_words():
    assert named("7 and three", ("seven", "three")) == ["seven", "three"]


@pytest.mark.parametrize(("mean", "count"), [(0.0, 5), (0.5, 40), (0.93, 500), (1.0, 12)])
def test_wilson_intervals_hold_the_share_and_stay_within_zero_and_one(mean, count):
    low, high = wilson_interval(mean, count)
    assert 0 <= low <= mean <= high <= 1
    wider = wilson_interval(mean, max(count // 4, 1))
    assert wider[1] - wider[0] > high - low


def test_character_error_is_edits_over_characters_not_a_mean_of_lines():
    mean, low, high = bootstrap_error(np.array([4.0, 0.0]), np.array([4.0, 12.0]))
    assert mean == 0.25
    assert low <= mean <= high


def test_a_floor_of_an_error_is_a_ceiling():
    lines = [Case([], [Turn("line", "?", "ABCD")])] * 8
    assert summarise("line", [0.25] * 8, lines, []).holds
    assert not summarise("line", [0.5] * 8, lines, []).holds
    digits = [Case([], [Turn("digit", "?", "One.")])] * 8
    assert not summarise("digit", [0.0] * 8, digits, []).holds
    assert summarise("word", [0.0] * 8, digits, []).holds is None


def test_the_json_names_every_ability_with_its_floor():
    cases = [Case([], [Turn("digit", "?", "One.")])]
    scores = [summarise(name, [1.0], cases, []) for name in ABILITIES]
    written = as_json(scores, model="omni-tiny", seconds=1.0)
    assert [row["ability"] for row in written["abilities"]] == list(ABILITIES)
    assert {row["count"] for row in written["abilities"]} == {1}


def test_media_become_files_that_open_as_the_same_media():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Subject("photo", load_media(pixels), {})
    assert (load_media(as_file(picture)).pixels.numpy() == pixels).all()
    waveform = np.sin(np.arange(8000) / 9).astype(np.float32) * 0.5
    sound = Subject("word", load_media(waveform, sampling_rate=16_000), {})
    again = load_media(as_file(sound)).waveform().numpy()
    np.testing.assert_allclose(again, waveform, atol=1 / 32_000)  # half a step of 16 bits


def test_the_card_never_rounds_in_the_models_favour():
    assert percent_down(0.8499) == "84.9"
    assert percent_up(0.2501) == "25.1"
    assert percent_down(1.0) == percent_up(1.0) == "100.0"


def test_the_cards_table_has_every_ability_with_its_verdict():
    cases = [Case([], [Turn("digit", "?", "One.")])] * 2
    scores = [summarise(name, [0.4, 0.4], cases, []) for name in ABILITIES]
    rows = score_rows(as_json(scores, model="omni-tiny", seconds=1.0))[2:]
    assert len(rows) == len(ABILITIES)
    with_floor = [ability for ability in ABILITIES.values() if ability.floor is not None]
    assert sum("**no**" in row for row in rows) == len(with_floor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "huge"], "Found eval 'huge'; expected 'tiny'"),
        (["eval", "tiny", "--data", "nowhere"], "nowhere: found no cifar10/ there"),
    ],
)
def test_eval_says_what_is_missing(arguments, message):
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)  # one command alone would lose its name
    with pytest.raises(RequestError, match=re.escape(message)):
        app(arguments, standalone_mode=False)


def test_mistakes_are_drawn_with_the_picture_that_was_asked_about(monkeypatch, tmp_path):
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    sources = []
    for picture in (red, blue):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        sources.append(buffer.getvalue())
    cases = [Case([source], [Turn("shape_colour", "What?", "Red.")]) for source in sources]
    monkeypatch.setattr(
        mistakes, "make_cases", lambda *args, abilities: dict.fromkeys(abilities, cases)
    )
    score = summarise("still", [1.0, 0.0], cases, [("What?", "Red.", "Blue.", 1)])
    evaluation = as_json([score], model="omni-tiny", seconds=1.0)
    sheet = np.asarray(mistakes.draw_mistakes(evaluation, tmp_path))
    assert (sheet == (0, 0, 255)).all(-1).sum() > 10_000
    assert not (sheet == (255, 0, 0)).all(-1).any()
    perfect = as_json([summarise("still", [1.0], cases[:1], [])], model="omni-tiny", seconds=1.0)
    assert mistakes.draw_mistakes(perfect, tmp_path) is None


def test_what_others_score_stands_in_the_row():
    cases = [Case([], [Turn("still", "What?", "Red.")])]
    score = summarise("still", [1.0], cases, [])
    score.others.append(OtherScore("a rule", 0.25, 0.2, 0.3))
    [row] = score_rows(as_json([score], model="omni-tiny", seconds=1.0))[2:]
    assert row.endswith("| a rule 25 % (20-30) |")
