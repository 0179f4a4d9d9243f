"""Scenes and events: what is asked has one true answer, which the drawing shows."""

import itertools
from collections import Counter

import numpy as np
import pytest

from finetune.tiny.drawing import COLOURS
from finetune.tiny.joint_data import Subject, Turn, pair_turn
from finetune.tiny.scene_questions import ask_events, ask_scene, ask_which_says
from finetune.tiny.scenes import MAX_SHAPES, MAX_TIMES, random_events, random_scene
from finetune.tiny.score import score_answer
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


def test_two_recordings_of_one_word_are_asked_about_one_at_a_time():
    sound = load_media(np.zeros(8_000, np.float32), sampling_rate=16_000)
    rng = np.random.default_rng(0)
    same = [Subject("word", sound, {"label": "yes"}) for _ in range(2)]
    other = [same[0], Subject("word", sound, {"label": "no"})]
    assert {pair_turn(rng, same).task for _ in range(20)} == {"word"}
    assert {pair_turn(rng, other).task for _ in range(20)} == {"which"}
