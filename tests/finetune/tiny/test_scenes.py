"""Scenes and events: what is asked has one true answer, which the drawing shows."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from finetune.tiny.drawing import COLOURS
from finetune.tiny.scene_questions import ask_events, ask_scene, ask_which_says
from finetune.tiny.scenes import (
    MAX_SHAPES,
    MAX_TIMES,
    Placed,
    Shown,
    random_events,
    random_scene,
)
from finetune.tiny.score import score_answer
from finetune.tiny.subjects import Subject
from finetune.tiny.turns import Turn, pair_turn
from omni.media import load_media

SEEDS = range(120)


def is_seen(pixels, placed_or_shown, x, y):
    """Whether the pixel at a place has a shape's colour, or nearly, since there may be noise."""
    height, width = pixels.shape[:2]
    found = pixels[
        int(y * height) - 1 : int(y * height) + 2, int(x * width) - 1 : int(x * width) + 2
    ]
    expected = np.asarray(COLOURS[placed_or_shown.colour])
    return np.abs(found.reshape(-1, 3).mean(0) - expected).max() < 25


def test_every_shape_of_a_scene_is_where_the_facts_say():
    counts = Counter()
    for seed in SEEDS:
        pixels, shapes = random_scene(np.random.default_rng(seed))
        assert all(is_seen(pixels, placed, placed.x, placed.y) for placed in shapes)
        counts[len(shapes)] += 1
    assert set(counts) == set(range(1, MAX_SHAPES + 1))


def test_a_seed_gives_the_same_scene_and_events_again():
    for draw in (random_scene, random_events):
        (one, facts), (other, same) = (draw(np.random.default_rng(5)) for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert facts == same


def test_a_clip_shows_each_shape_in_its_frames_and_nothing_between():
    times = Counter()
    for seed in SEEDS:
        frames, showings = random_events(np.random.default_rng(seed))
        times[len(showings)] += 1
        ends = [end for shown in showings for end in (shown.first, shown.end)]
        assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(ends))
        empty = [i for i in range(len(frames)) if not any(s.first <= i < s.end for s in showings)]
        for shown in showings:
            colour = np.asarray(COLOURS[shown.colour])
            near = np.abs(frames.astype(int) - colour).max(-1) < 30
            assert near[shown.first : shown.end].any((1, 2)).all()
        if len(empty) > 1 and len({s.colour for s in showings}) == 1:
            assert not (np.abs(frames[empty].astype(int) - colour).max(-1) < 20).mean() > 0.01
    assert set(times) == set(range(1, MAX_TIMES + 1))


def test_answers_about_scenes_follow_from_the_facts():
    tasks = Counter()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        _, shapes = random_scene(rng)
        for task, question, answer in ask_scene(rng, shapes):
            tasks[task] += 1
            assert "{" not in question
            assert score_answer(Turn(task, question, answer), answer) == 1
            words = answer.lower().rstrip(".").split()
            if task == "side":
                assert any([p.colour, p.shape] == words for p in shapes)
            if task == "corner":
                [asked] = {
                    p for p in shapes if p.colour in question.lower() and p.shape in question
                }
                assert words == [
                    "up" if asked.y < 0.5 else "down",
                    "left" if asked.x < 0.5 else "right",
                ]
            if task == "colour":
                [colour] = [p.colour for p in shapes if p.shape in question.lower()]
                assert words == [colour]
    assert set(tasks) == {"count", "side", "corner", "colour", "shape"}


def test_answers_about_events_follow_from_the_facts():
    tasks = Counter()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        _, showings = random_events(rng)
        for task, question, answer in ask_events(rng, showings, 0.25):
            tasks[task] += 1
            if task == "when":
                assert answer == f"At {showings[0].first / 4:.1f} seconds."
                near, far = (f"{showings[0].first / 4 + d:.2f} s" for d in (0.49, 0.8))
                turn = Turn(task, question, answer)
                assert [score_answer(turn, said) for said in (near, far, "Never.")] == [1, 0, 0]
            if task == "side":
                place = 0 if "first" in question.lower() else 1
                assert answer.lower() == f"{showings[place].colour} {showings[place].shape}."
    assert set(tasks) == {"count", "side", "when"}


@pytest.mark.parametrize("seed", range(5))
def test_of_two_recordings_the_one_that_says_the_word_is_asked_for(seed):
    _, question, answer = ask_which_says(np.random.default_rng(seed), ("yes", "seven"))
    assert ("yes" in question) == (answer == "The first.")
    assert ("seven" in question) == (answer == "The second.")


def test_one_of_two_recordings_is_meant_or_the_one_that_says_a_word():
    sound = load_media(np.zeros(8_000, np.float32), sampling_rate=16_000)
    rng = np.random.default_rng(0)
    same = [Subject("word", sound, {"label": "yes"}) for _ in range(2)]
    other = [same[0], Subject("word", sound, {"label": "no"})]
    assert {pair_turn(rng, same).task for _ in range(20)} == {"word"}
    turns = [pair_turn(rng, other) for _ in range(60)]
    assert {turn.task for turn in turns} == {"which", "word"}
    told = [turn for turn in turns if turn.task == "word"]
    for ordinal, number, answer in (("first", "1", "Yes."), ("second", "2", "No.")):
        meant = [t for t in told if ordinal in t.question.lower() or number in t.question]
        assert {turn.answer for turn in meant} == {answer}


RED = Placed("red", "circle", 0.2, 0.2)
BLUE = Placed("blue", "star", 0.8, 0.4)
SECOND_BLUE = Placed("blue", "circle", 0.75, 0.9)


def asked(shapes, task, pattern):
    """Answers to all questions of a task whose wording matches, over many draws."""
    found = set()
    for seed in range(150):
        for kind, question, answer in ask_scene(np.random.default_rng(seed), shapes):
            if kind == task and re.search(pattern, question, re.IGNORECASE):
                found.add(answer)
    return found


def test_questions_about_a_scene_by_hand():
    three = (RED, BLUE, SECOND_BLUE)
    assert asked(three, "count", r"\b(shapes|things|objects|figures)\b(?!.*(red|blue))") >= {
        "Three."
    }
    assert asked(three, "count", "circles") == {"Two."}
    assert asked(three, "count", "stars") == {"One."}
    assert asked(three, "count", "red") == {"One."}
    assert asked(three, "count", "blue") == {"Two."}
    assert asked(three, "shape", "red") == {"Circle."}
    assert asked(three, "shape", "blue") == set()  # there are two
    assert asked(three, "colour", "star") == {"Blue."}
    assert asked(three, "side", r"left\b|leftmost|on the left") == {"Red circle."}
    assert asked(three, "side", "right") == set()  # 0.8 and 0.75 are too near
    assert asked(three, "side", r"lowest|down|at the bottom") == {"Blue circle."}
    assert asked(three, "side", r"topmost|furthest up|most up") == {"Red circle."}
    assert asked(three, "corner", "red circle") == {"Up left."}
    assert asked(three, "corner", "blue circle") == {"Down right."}
    assert asked((RED, BLUE), "side", "on the right|rightmost|right") == {"Blue star."}
    beside = Placed("red", "circle", 0.65, 0.5), Placed("blue", "star", 0.9, 0.5)
    assert asked(beside, "side", "on the left") == set()  # both are on the right


def test_questions_about_events_by_hand():
    twice = (Shown("red", "star", 2, 4), Shown("red", "star", 6, 10))
    answers = {
        (task, a)
        for s in range(40)
        for task, _, a in ask_events(np.random.default_rng(s), twice, 0.5)
    }
    assert answers == {("count", "Two."), ("when", "At 1.0 seconds.")}
