"""Answers are judged by the word that counts, and shares come with honest intervals."""

import io
import re

import numpy as np
import pytest
import typer
from PIL import Image

from finetune.cli import register
from finetune.tiny import cases as tiny_cases
from finetune.tiny import mistakes, questions, subjects
from finetune.tiny.abilities import ABILITIES
from finetune.tiny.audio_data import DIGITS, Clip
from finetune.tiny.card import percent_down, percent_up, score_rows
from finetune.tiny.cases import QUARTER, Case, as_file, make_cases
from finetune.tiny.evaluate import (
    OtherScore,
    as_json,
    bootstrap_error,
    evaluate,
    summarise,
    wilson_interval,
    with_relative_floors,
)
from finetune.tiny.model_config import model_config, processor_settings
from finetune.tiny.score import named, score_answer
from finetune.tiny.subjects import Subject
from finetune.tiny.turns import Turn
from omni.errors import RequestError
from omni.media import load_media
from omni.options import MediaOptions
from omni.planning import MediaPlanner

ABLE = "I can name spoken digits and words, and read lines."


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
        ("field", "RM 12.50", " RM  12.50\n", 1),
        ("field", "RM 12.50", "12.50", 0),
        ("title", "MILO CAFE", "Milo Cafe", 0),
        ("cell", "31", "31.", 0),
        ("amount", "1,204.50", "RM 1204.5", 1),
        ("amount", "$8.20", "8.20 of 10.00", 0),
        ("amount", "8.20", "", 0),
        ("day", "05 MAR 2018", "5 March 18", 1),
        ("day", "2018-03-05", "05/03/2018", 1),
        ("day", "12/28/2017", "The date is 12-28-17.", 1),
        ("day", "05/03/2018", "03/05/2018", 0),
        ("day", "05/03/2018", "05/03/2018 12:40", 0),
        ("name", "", f"I am omni-tiny. {ABLE}", 1),
        ("name", "", ABLE, 0),
        ("name", "", "I am omni-tiny. In other words, I read lines.", 0),
        ("name", "", f"{questions.REFUSAL}: I am omni-tiny. {ABLE}", 0),
        ("abilities", "", ABLE, 1),
        ("abilities", "", f"{questions.REFUSAL}: {ABLE}", 0),
        ("abilities", "", "Seven.", 0),
        ("out_of_scope", "", f"{questions.REFUSAL}: I am omni-tiny. {ABLE}", 1),
        ("out_of_scope", "", f"Hello! I am omni-tiny. {ABLE}", 0),
        ("out_of_scope", "", f"{questions.REFUSAL}.", 0),
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
    assert summarise("line", [0.04] * 8, lines, []).holds
    assert not summarise("line", [0.05] * 8, lines, []).holds
    digits = [Case([], [Turn("digit", "?", "One.")])] * 8
    assert not summarise("digit", [0.0] * 8, digits, []).holds
    assert summarise("shape", [0.0] * 8, digits, []).holds is None


@pytest.mark.parametrize(
    ("ability", "plain", "score", "holds", "goal"),
    [
        ("colour_evs", 0.96, 0.93, True, ">= 93.0 % (plain row - 3)"),
        ("colour_evs", 0.96, 0.92, False, ">= 93.0 % (plain row - 3)"),
        ("dialogue_still", 1.0, 0.98, True, ">= 98.0 % (plain row - 2)"),
        ("dialogue_still", 1.0, 0.97, False, ">= 98.0 % (plain row - 2)"),
        ("page_second", 0.0, 0.0, None, ""),
        ("receipt_line_quarter", 0.08, 0.11, True, "<= 11.0 % (plain row + 3)"),
        ("receipt_line_quarter", 0.08, 0.12, False, "<= 11.0 % (plain row + 3)"),
    ],
)
def test_a_row_below_another_is_measured_by_it(ability, plain, score, holds, goal):
    other = ABILITIES[ability].below[0]
    digits = [Case([], [Turn("digit", "?", "One.")])] * 2
    rows = [summarise(ability, [score] * 2, digits, []), summarise(other, [plain] * 2, digits, [])]
    found = with_relative_floors(rows)[0]
    assert (found.holds, found.goal) == (holds, goal)
    [alone] = with_relative_floors(rows[:1])  # the other row was not asked
    assert (alone.holds, alone.goal) == (None, "")


def test_rows_that_others_are_measured_by_are_rows():
    below = [(name, row.below[0]) for name, row in ABILITIES.items() if row.below is not None]
    assert {plain for _, plain in below} <= set(ABILITIES)
    assert all(ABILITIES[name].is_error == ABILITIES[plain].is_error for name, plain in below)
    assert all(ABILITIES[name].floor is None for name, _ in below)


def test_a_refusal_is_the_answer_to_what_is_out_of_scope():
    refusal = questions.answer_out_of_scope(np.random.default_rng(0))
    asked = Turn("refused", "Which digit is spoken?", "Seven.")
    assert score_answer(asked, refusal) == 1
    assert score_answer(asked, refusal.lower()) == 1
    for said in ("Seven.", "", questions.answer_identity("name", np.random.default_rng(0))):
        assert score_answer(asked, said) == 0


@pytest.fixture
def tones(monkeypatch):
    """Recordings of the digits, so that cases can be made without the training data."""
    times = np.arange(8_000) / 16_000
    clips = [
        Clip(np.sin(2 * np.pi * (300 + 50 * i) * times).astype(np.float32), word, "fsdd")
        for i, word in enumerate(DIGITS)
    ]
    monkeypatch.setattr(subjects, "load_clips", lambda data, split: clips)


class Refusing:
    """An assistant that refuses all, and notes the options it was asked with."""

    def __init__(self):
        self.options = []

    def chat_batch(self, conversations, *, max_new_tokens, **options):
        self.options.append(options)
        return ["I cannot help with that."] * len(conversations)


def test_each_row_is_asked_with_its_options(tones, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_cases, "IN_SCOPE", ("digit", "still", "sounded"))
    names = ["still", "still_quarter", "sounded", "refused"]
    cases = make_cases(tmp_path, 6, abilities=names)
    assert list(cases) == names
    assistant = Refusing()
    scores = evaluate(assistant, cases)
    quarter = {"reduction": {"image": "merge(0.75)"}}
    assert assistant.options == [{}, quarter, {"audio_in_video": True}, {"audio_in_video": True}]
    assert [score.mean for score in scores] == [0, 0, 0, 1]
    assert scores[-1].low == pytest.approx(0.61, abs=0.01)  # Wilson: a share, not edits
    plain, reduced = cases["still"], cases["still_quarter"]
    assert [case[:2] for case in plain] == [case[:2] for case in reduced]
    assert {len(case.sources) for case in cases["refused"]} == {1}
    assert len(cases["refused"]) == 6


def test_a_reduced_row_asks_what_its_plain_row_asks(tones, tmp_path):
    cases = make_cases(tmp_path, 6, abilities=["colour", "colour_evs"])
    assert [case[:2] for case in cases["colour"]] == [case[:2] for case in cases["colour_evs"]]
    assert cases["colour_evs"][0].options == {"reduction": {"video": "evs(0.5)"}}


def test_faces_that_are_missing_leave_their_row_out_and_are_named(
    tones, tmp_path, monkeypatch, caplog
):
    def find_none(faces):
        raise FileNotFoundError(f"None of the families for {faces} is installed.")

    monkeypatch.setattr(tiny_cases, "find_fonts", find_none)
    assert list(make_cases(tmp_path, 4, abilities=["line_signs", "still"])) == ["still"]
    assert "letters cut out of boxes" in caplog.text
    assert "None of the families for signs" in caplog.text


def test_a_second_question_is_another_one_and_is_also_asked_alone(tones, tmp_path):
    for name in ("dialogue", "dialogue_still"):
        cases = make_cases(tmp_path, 8, abilities=[name, f"{name}_alone"])
        for both, alone in zip(cases[name], cases[f"{name}_alone"], strict=True):
            first, second = both.turns
            assert first.task != second.task
            assert alone == Case(both.sources, [second])
            if name == "dialogue_still":
                assert {first.task, second.task} == {"colour", "shape"}


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (96, 64), (160, 160), (20, 300), (299, 299)])
def test_the_rows_at_a_quarter_leave_a_quarter_of_the_tokens(size):
    picture = load_media(np.zeros((*size, 3), np.uint8))
    counts = []
    for spec in ("identity", QUARTER["reduction"]["image"]):
        options = MediaOptions(reduction={"image": spec})
        planner = MediaPlanner(
            [picture], model_config(512), processor_settings(), options, max_tokens=10_000
        )
        counts.append(planner.plan()[0].items[0].num_tokens)
    assert counts[0] >= 16  # of the smallest picture, which is enlarged
    assert 0 <= counts[0] / 4 - counts[1] < 1


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
    scores = [summarise(name, [0.3, 0.3], cases, []) for name in ABILITIES]
    rows = score_rows(as_json(scores, model="omni-tiny", seconds=1.0))[2:]
    assert len(rows) == len(ABILITIES)
    with_floor = [ability for ability in ABILITIES.values() if ability.floor is not None]
    assert sum("**no**" in row for row in rows) == len(with_floor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "huge"], "Found eval 'huge'; expected 'tiny'"),
        (["eval", "tiny", "--data", "nowhere"], "nowhere: found no cifar10/ there"),
        (["eval", "tiny", "--metric", "cer"], "Found --metric with `tiny`"),
        (["eval", "tiny", "--max-new-tokens", "0"], "Found --max-new-tokens with `tiny`"),
        (["eval", "tiny", "--reduce", "image=identity"], "Found --reduce with `tiny`"),
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
