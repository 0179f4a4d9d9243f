"""The tokenizer of omni-tiny: lossless, with the released ids, and whole words where it counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.tiny import questions
from finetune.tiny.audio_data import WORDS
from finetune.tiny.drawing import COLOURS, DIRECTIONS, SHAPES
from finetune.tiny.tokenizer import (
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    build_tokenizer,
    encode_characters,
)

LABELS = (*WORDS, *questions.OBJECTS, *COLOURS, *SHAPES, *" ".join(DIRECTIONS).split())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(text=st.text() | st.sampled_from([" a  b\n\n", "<s> </s><image>", "don't 7.50\t", "\r\n"]))
def test_any_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode(encode_characters(tokenizer, text)) == text


def test_special_tokens_have_the_released_ids(tokenizer):
    for token_id, token in SPECIAL_TOKENS.items():
        assert tokenizer(token).input_ids == [token_id]
    assert tokenizer("<SPECIAL_3><SPECIAL_26>").input_ids == [3, 26]


def test_an_answer_ends_with_im_end_and_nothing_is_put_before_it(tokenizer):
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (11, 0)
    assert tokenizer("").input_ids == []


def test_the_vocabulary_is_small_and_the_same_on_every_build(tokenizer):
    assert 1024 <= len(tokenizer) <= MAX_VOCAB_SIZE
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_one_token_wherever_it_stands(tokenizer, label):
    forms = (label, f" {label}", label.capitalize(), f" {label.capitalize()}")
    assert [len(tokenizer(form).input_ids) for form in forms] == [1, 1, 1, 1]


def test_digits_stand_alone_and_unusual_words_fall_apart(tokenizer):
    assert len(tokenizer("2026").input_ids) == 4
    assert len(tokenizer("XK7-QZR").input_ids) == 7


def test_questions_hold_hardly_any_word_that_falls_apart(tokenizer):
    rng = np.random.default_rng(1)
    asked = [ask(rng) for ask in questions.ASKERS.values() for _ in range(200)]
    num_tokens = sum(len(tokenizer(text).input_ids) for text in asked)
    num_words = sum(len(text.split()) for text in asked)
    assert num_tokens < 1.35 * num_words  # punctuation is a token of its own


@pytest.mark.parametrize("task", questions.ASKERS)
def test_each_task_is_asked_in_many_wordings(task):
    rng = np.random.default_rng(0)
    asked = {questions.ASKERS[task](rng) for _ in range(300)}
    assert len(asked) >= 100
    assert not any(sign in text for text in asked for sign in "[]|")
    assert all(text == text.strip() and "  " not in text for text in asked)


def test_questions_repeat_with_the_seed():
    first, second = (
        [ask(np.random.default_rng(5)) for ask in questions.ASKERS.values()] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda rng: questions.answer_digit("seven", rng), "Seven."),
        (lambda rng: questions.answer_digits(["three", "one"], rng), "Three, one."),
        (lambda rng: questions.answer_word("_silence_", rng), "No word is spoken."),
        (lambda rng: questions.answer_handwritten(7, rng), "Seven."),
        (lambda rng: questions.answer_direction("up left", rng), "Up left."),
        (lambda rng: questions.answer_direction("still", rng), "It stands still."),
        (lambda rng: questions.answer_shape_colour("red", "star", rng), "Red star."),
    ],
)
def test_answers_are_short_and_always_worded_alike(answer, expected):
    assert {answer(np.random.default_rng(seed)) for seed in range(5)} == {expected}


def test_it_says_its_name_and_what_it_can_do():
    rng = np.random.default_rng(0)
    for text in (
        questions.answer_identity("name", rng),
        questions.answer_out_of_scope(rng),
        questions.answer_greeting(rng),
    ):
        assert "omni-tiny" in text
        assert "I can name" in text
