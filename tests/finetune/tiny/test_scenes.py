"""Scenes and events: what is asked has one true answer, which the drawing shows."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from finetune.guide import FACT
from finetune.tiny.drawing import COLOURS, SHAPES
from finetune.tiny.model_config import build_model, processor_settings
from finetune.tiny.scene_questions import SIDES, ask_events, ask_scene, ask_which_says
from finetune.tiny.scene_targets import place_targets, random_event_tubelets, random_scenes
from finetune.tiny.scenes import (
    MAX_SHAPES,
    MAX_TIMES,
    Placed,
    Shown,
    random_events,
    random_scene,
)
from finetune.tiny.score import score_answer
from finetune.tiny.spelling import mark_answers
from finetune.tiny.subjects import Subject
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.turns import Turn, chat, pair_turn, turns_about
from finetune.tiny.vision_data import IGNORE
from omni.media import load_media
from omni.options import MediaOptions
from omni.processor import OmniProcessor

SEEDS = range(120)


class OpenedProcessor(OmniProcessor):
    """Takes media that are open already."""

    def load_media(self, source, **options):
        return source


@pytest.fixture(scope="module")
def processor():
    tokenizer = build_tokenizer()
    return OpenedProcessor(tokenizer, build_model(len(tokenizer)).config, processor_settings())


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


def test_marked_places_are_as_wide_and_as_high_as_their_shapes():
    height, width = 96, 224
    seen = 0
    for seed in SEEDS:
        pixels, shapes = random_scene(np.random.default_rng(seed), (height, width))
        colours = Counter(placed.colour for placed in shapes)
        for placed in (placed for placed in shapes if colours[placed.colour] == 1):
            rgb = np.asarray(COLOURS[placed.colour])
            is_ink = np.abs(pixels.astype(int) - rgb).max(-1) < 30
            x, y = placed.x * width, placed.y * height
            across, down = placed.reach[0] * width, placed.reach[1] * height
            top, left = max(round(y - down), 0), max(round(x - across), 0)
            inside = is_ink[top : round(y + down) + 1, left : round(x + across) + 1]
            if inside.mean() < 0.2:  # too much noise to see it
                continue
            seen += 1
            assert inside.any(0).sum() > across  # half of the box, at least
            assert inside.any(1).sum() > down
    assert seen > len(SEEDS) / 2


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
        for qa in ask_scene(rng, shapes):
            task, question, answer = qa.task, qa.question, qa.answer
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
        for qa in ask_events(rng, showings, 0.25, 16):
            task, question, answer = qa.task, qa.question, qa.answer
            tasks[task] += 1
            if task == "when":
                assert answer == f"At {showings[0].first / 4:.1f} seconds."
                near, far = (f"{showings[0].first / 4 + d:.2f} s" for d in (0.49, 0.8))
                turn = Turn(task, question, answer)
                assert [score_answer(turn, said) for said in (near, far, "Never.")] == [1, 0, 0]
            if task == "side":
                place = 0 if "first" in question.lower() else 1
                first, second = (f"{shown.colour} {shown.shape}" for shown in showings)
                last = (first, second)[place]
                assert answer.lower() == f"{first}, {second}: {last}."
    assert set(tasks) == {"count", "side", "when"}


@pytest.mark.parametrize("seed", range(5))
def test_of_two_recordings_the_one_that_says_the_word_is_asked_for(seed):
    qa = ask_which_says(np.random.default_rng(seed), ("yes", "seven"))
    assert [(p.text, p.medium) for p in qa.parts if p.span] == [
        ("Yes is first", 0),
        (", ", 1),
        ("seven is second", 1),
    ]
    steps = "Yes is first, seven is second: "
    assert ("yes" in qa.question) == (qa.answer == f"{steps}yes is first.")
    assert ("seven" in qa.question) == (qa.answer == f"{steps}seven is second.")


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
        for qa in ask_scene(np.random.default_rng(seed), shapes):
            if qa.task == task and re.search(pattern, qa.question, re.IGNORECASE):
                found.add(qa.answer)
    return found


def test_questions_about_a_scene_by_hand():
    three = (RED, BLUE, SECOND_BLUE)
    assert asked(three, "count", r"\b(shapes|things|objects|figures)\b(?!.*(red|blue))") >= {
        "One red circle, two blue circle, three blue star: three."
    }
    circles = "Red circle one, blue circle two, blue star: two."
    assert asked(three, "count", "circles") == {circles}
    assert asked(three, "count", "stars") == {"Red circle, blue circle, blue star one: one."}
    assert asked(three, "count", "red") == {"Red circle one, blue circle, blue star: one."}
    assert asked(three, "count", "blue") == {"Red circle, blue circle one, blue star two: two."}
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
        (qa.task, qa.answer)
        for s in range(40)
        for qa in ask_events(np.random.default_rng(s), twice, 0.5, 12)
    }
    assert answers == {("count", "One at 1.0, two at 3.0: two."), ("when", "At 1.0 seconds.")}


# ---- what the vision tower learns from scenes ----


def test_each_shape_is_named_where_it_is_and_nowhere_else():
    placed = (
        Placed("red", "circle", 0.125, 0.125, reach=(0.1, 0.1)),
        Placed("blue", "star", 0.8, 0.6, reach=(0.1, 0.1)),
    )
    found = {name: t.reshape(8, 8, -1) for name, t in place_targets(placed, (8, 8)).items()}
    red, blue = ([*COLOURS].index(colour) + 1 for colour in ("red", "blue"))
    assert set(found["thing_colour"].ravel()) == {0, IGNORE, red, blue}
    np.testing.assert_array_equal(found["thing_colour"] == 0, found["thing_shape"] == 0)
    assert [tuple(cell[:2]) for cell in np.argwhere(found["centre"])] == [(1, 1), (4, 6)]
    assert found["thing_colour"][1, 1] == red
    assert found["thing_shape"][4, 6] == SHAPES.index("star") + 1
    assert (found["thing_colour"][:, 3:5] == 0).all()
    sides = list(SIDES)
    outermost = {
        (y, x): dict(zip(sides, found["outermost"][y, x], strict=True)) for y, x in ((1, 1), (4, 6))
    }
    assert outermost[1, 1] == {"left": 1, "right": 0, "up": 1, "down": 0}
    assert outermost[4, 6] == {"left": 0, "right": 1, "up": 0, "down": 1}
    assert (found["outermost"].sum(-1) != 4 * IGNORE).sum() == 2


def test_shapes_that_lie_nearly_as_far_to_a_side_are_not_compared():
    placed = (
        Placed("red", "circle", 0.5, 0.2, (0.1, 0.1)),
        Placed("blue", "star", 0.52, 0.8, (0.1, 0.1)),
    )
    outermost = place_targets(placed, (8, 8))["outermost"].reshape(8, 8, -1)
    sides = dict(zip(SIDES, outermost[1, 4], strict=True))
    assert sides == {"left": IGNORE, "right": IGNORE, "up": 1, "down": 0}


def test_shapes_are_numbered_from_the_left_among_all_among_their_colour_and_among_their_kind():
    placed = (
        Placed("blue", "star", 0.9, 0.1, (0.1, 0.1)),
        Placed("red", "star", 0.1, 0.9, (0.1, 0.1)),
        Placed("red", "circle", 0.3, 0.1, (0.1, 0.1)),
        Placed("red", "star", 0.6, 0.5, (0.1, 0.1)),
    )
    rank = place_targets(placed, (10, 10))["rank"].reshape(10, 10, 3)
    where = {one: rank[int(10 * one.y), int(10 * one.x)].tolist() for one in placed}
    assert [where[one] for one in placed] == [[4, 1, 3], [1, 1, 1], [2, 2, 1], [3, 3, 2]]
    touched = place_targets(placed, (10, 10))["thing_shape"].reshape(10, 10) == IGNORE
    assert (rank[touched] == IGNORE).all()
    assert rank[9, 9].tolist() == [0, 0, 0]


def test_an_only_shape_lies_furthest_to_all_sides_and_an_empty_frame_has_no_targets():
    alone = place_targets([Placed("red", "circle", 0.5, 0.5, (0.1, 0.1))], (8, 8))
    assert alone["outermost"].reshape(8, 8, 4)[4, 4].tolist() == [1, 1, 1, 1]
    empty = place_targets([], (8, 8))
    assert not any(empty[name].any() for name in ("thing_colour", "thing_shape", "centre", "rank"))
    assert (empty["outermost"] == IGNORE).all()


def test_batches_of_scenes_and_of_events_have_targets_for_each_patch():
    rng = np.random.default_rng(0)
    for task in (random_scenes(rng, 3), random_event_tubelets(rng, 12)):
        items, patches, _ = task.part.patches.shape
        assert patches == task.part.grid[0] * task.part.grid[1]
        assert task.targets["thing_shape"].shape == (items, patches)
        assert task.targets["outermost"].shape == (items, patches, 4)
        assert task.targets["rank"].shape == (items, patches, 3)
    seen = task.targets["centre"].sum(1)
    assert set(seen.tolist()) == {0, 1}  # tubelets with a shape, and without


# ---- where attention is told to look ----


def marked_rows(processor, subject, turns):
    """Tokens that each marked answer token points at, by the answer's text."""
    inputs = processor(chat([subject.medium], turns, answered=True), with_labels=True)
    inputs = mark_answers(inputs, turns, [list(range(len(inputs.media)))], processor.tokenizer)
    for item in inputs.media:
        steps = len(item.separators) + 1
        ids, _ = item.lay([item.num_tokens // steps] * steps)  # as the model lays what is whole
        for mark in item.facts.get(FACT, ()):  # not the labels between frames
            assert {ids[token] for token in mark.tokens} == {item.token_id}
    return inputs


@pytest.mark.parametrize("seed", range(8))
def test_answers_about_a_scene_are_marked_where_their_shape_is(processor, seed):
    rng, turns = np.random.default_rng(seed), []
    while not turns:  # in some scenes nothing lies furthest to a side
        pixels, shapes = random_scene(rng)
        subject = Subject("scene", load_media(pixels), {"shapes": shapes})
        turns = [turn for turn in turns_about(rng, subject, count=99) if turn.task == "side"]
    inputs = marked_rows(processor, subject, turns)
    [item] = inputs.media
    height, width = item.grid[1] // 2, item.grid[2] // 2
    answers = [turn.answer.lower() for turn in turns]
    for mark in item.facts[FACT]:
        rows, columns = zip(*(divmod(token, width) for token in mark.tokens), strict=True)
        inside = [
            shape
            for shape in shapes
            if min(rows) <= shape.y * height <= max(rows) + 1
            and min(columns) <= shape.x * width <= max(columns) + 1
        ]
        assert any(f"{shape.colour} {shape.shape}." in answers for shape in inside)
    assert len(item.facts[FACT]) >= 3 * len(turns)  # colour, shape, full stop


def test_shapes_are_counted_one_by_one_from_left_to_right(processor):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels, shapes = random_scene(rng)
        subject = Subject("scene", load_media(pixels), {"shapes": shapes})
        turns = [t for t in turns_about(rng, subject, count=99) if t.task == "count"]
        [turn] = [t for t in turns if not re.search("|".join((*COLOURS, *SHAPES)), t.question)]
        [item] = marked_rows(processor, subject, [turn]).media
        height, width = item.grid[1] // 2, item.grid[2] // 2
        marks = sorted(item.facts[FACT], key=lambda mark: mark.query)
        ordered = sorted(shapes, key=lambda placed: placed.x)
        in_order = [shape for shape in ordered for _ in range(4)][1:]  # the first has no comma
        for mark, shape in zip(marks, in_order, strict=True):  # comma, number, colour and shape
            cell = int(shape.y * height) * width + int(shape.x * width)
            assert cell in mark.tokens


def test_answers_about_events_are_marked_while_their_shape_is_seen(processor):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        frames, showings = random_events(rng)
        if len({(shown.colour, shown.shape) for shown in showings}) == 2:
            break
    facts = {"showings": showings, "seconds": 0.25}
    subject = Subject("events", load_media(frames, fps=4.0), facts)
    turns = [t for t in turns_about(rng, subject, count=9) if t.task == "side"]
    [item] = marked_rows(processor, subject, turns).media
    num_steps = len(frames) // 2
    per_step = item.num_tokens // num_steps
    shown_steps = [range(s.first // 2, s.end // 2) for s in showings]
    _, offsets = item.lay([per_step] * num_steps)
    step_of = {offset: index // per_step for index, offset in enumerate(offsets)}
    marks = sorted(item.facts[FACT], key=lambda mark: mark.query)
    found = [{step_of[token] for token in mark.tokens} for mark in marks]
    in_order = [set(steps) for steps in shown_steps for _ in ("comma", "colour", "shape")]
    assert found == in_order[1:] * len(turns)  # the first has no comma


def test_media_whose_tokens_were_reduced_are_not_marked(processor):
    rng = np.random.default_rng(3)
    pixels, shapes = random_scene(rng)
    subject = Subject("scene", load_media(pixels), {"shapes": shapes})
    turns = turns_about(rng, subject, count=99)
    options = MediaOptions(reduction={"image": "merge(0.5)"})
    messages = chat([subject.medium], turns, answered=True)
    inputs = processor(messages, options=options, with_labels=True)
    [item] = mark_answers(inputs, turns, [[0]], processor.tokenizer).media
    assert FACT not in item.facts
