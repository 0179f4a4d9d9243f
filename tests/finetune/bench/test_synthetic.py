"""The synthetic puzzles: the same for everyone, and true to what they say of themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.bench.synthetic import (
    NOTHING,
    NUMBERS,
    OTHER,
    TASKS,
    UNSURE,
    Conversations,
    Puzzle,
    Puzzles,
    draw,
    draw_sheet,
)
from omni.inputs import Modality

few = settings(max_examples=25, deadline=None)
puzzles = st.builds(
    lambda task, seed: draw(task, np.random.default_rng(seed)),
    st.sampled_from(list(TASKS)),
    st.integers(0, 10**6),
)


@few
@given(st.sampled_from(list(TASKS)), st.integers(0, 99), st.integers(0, 99))
def test_a_number_is_the_same_puzzle_each_time_whatever_came_before(
    task: str, seed: int, index: int
) -> None:
    first = Puzzles((task,), 100, seed)[index]
    drawn = Puzzles((task,), 100, seed)
    for other in range(2):
        drawn[other]
    again = drawn[index]
    assert first.label == again.label
    assert np.array_equal(first.medium, again.medium)
    assert np.array_equal(first.shown, again.shown)


@few
@given(puzzles)
def test_the_small_thing_lies_in_few_cells_and_all_of_it_in_some(puzzle: Puzzle) -> None:
    height, width = puzzle.covered.shape[-2:] if puzzle.task == "picture" else (0, 0)
    grids = {"clip": (5, 3, 5), "picture": (1, height // 16, width // 16), "recording": (38, 1, 1)}
    shares = puzzle.shares(grids[puzzle.task])
    assert shares.sum() == pytest.approx(1.0, abs=1e-4)
    assert 0 < np.count_nonzero(shares) <= len(shares) / 3
    classes = puzzle.classes(grids[puzzle.task])
    assert puzzle.label in classes
    assert set(classes[shares > 0].tolist()) <= {*range(NOTHING), UNSURE}


@few
@given(puzzles)
def test_without_the_small_thing_the_answer_cannot_be_seen(puzzle: Puzzle) -> None:
    """It is what differs from the medium drawn with the same seed and another label."""
    if puzzle.task == "recording":
        loud = np.abs(puzzle.medium[puzzle.covered]).max()
        assert loud > 0.03
    else:
        pixels = puzzle.medium[puzzle.covered]
        assert pixels.min() > 200  # white but for noise; the inks and the ground are not


@few
@given(st.integers(0, 10**6))
def test_judging_takes_the_right_word_and_no_other(seed: int) -> None:
    puzzle = draw("picture", np.random.default_rng(seed))
    verdicts = [puzzle.judge(f"{word.capitalize()}.") for word in NUMBERS]
    assert verdicts == [float(word == puzzle.answer) for word in NUMBERS]


def test_labels_are_balanced_and_tones_are_counted_from_one() -> None:
    drawn = Puzzles(("recording",), 400, 0)
    words = [drawn[index].answer for index in range(400)]
    assert set(words) == set(NUMBERS[1:9])
    assert min(words.count(word) for word in NUMBERS[1:9]) > 25


def test_conversations_end_with_the_answer() -> None:
    [question, answer] = Conversations(Puzzles(("clip",), 3, 0))[2]
    assert question["role"] == "user"
    assert answer["content"].rstrip(".").lower() in NUMBERS


@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_sheet_names_the_digits_that_it_shows(modality: Modality) -> None:
    for seed in range(5):
        pixels, labels = draw_sheet(modality, np.random.default_rng(seed))
        frames = pixels if modality == "video" else pixels[None]
        assert len(labels) == frames.shape[1] * frames.shape[2] / 256
        assert set(labels.tolist()) <= {*range(NOTHING), NOTHING, UNSURE}
        tokens = frames[0].reshape(frames.shape[1] // 16, 16, frames.shape[2] // 16, 16, 3)
        white = (tokens.min(axis=-1) > 200).any(axis=(1, 3)).ravel()
        assert not white[labels == NOTHING].any()
        assert white[(labels >= 0) & (labels < OTHER)].all()
