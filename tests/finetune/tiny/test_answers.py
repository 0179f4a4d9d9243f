"""Answers in steps: what was seen stands first, and what it comes to is judged alone."""

import pytest

from finetune.guide import Span
from finetune.tiny.answers import Part, at_once, by_counting, by_counting_some, conclusion, in_steps
from finetune.tiny.score import score_answer
from finetune.tiny.turns import Turn

LEFT, RIGHT = Span(right=0.5), Span(left=0.5)


def test_steps_are_named_in_order_and_a_comma_is_shown_by_what_comes_next():
    parts = in_steps([Part("red star", LEFT), Part("go", RIGHT, is_heard=True)], "go")
    assert "".join(part.text for part in parts) == "Red star, go: go."
    assert [(p.text, p.span, p.is_heard) for p in parts if p.span] == [
        ("Red star", LEFT, False),
        (", ", RIGHT, True),
        ("go", RIGHT, True),
    ]


def test_counting_names_one_number_a_thing():
    parts = by_counting([Part("", LEFT), Part("red star", RIGHT), Part("", LEFT, 1)])
    assert "".join(part.text for part in parts) == "One, two red star, three: three."
    shown = [(p.medium, p.span) for p in parts if p.span and p.text != ", "]
    assert shown == [(0, LEFT), (0, RIGHT), (1, LEFT)]
    assert "".join(part.text for part in by_counting([Part("", LEFT)])) == "One: one."


@pytest.mark.parametrize(
    ("are_meant", "expected"),
    [
        ([False, True, True], "Red star, go one, blue star two: two."),
        ([True, False, False], "Red star one, go, blue star: one."),
        ([True, True, True], "Red star one, go two, blue star three: three."),
    ],
)
def test_of_all_things_only_those_that_are_meant_are_counted(are_meant, expected):
    things = [Part("red star", LEFT), Part("go", RIGHT), Part("blue star", LEFT)]
    parts = by_counting_some(things, are_meant)
    assert "".join(part.text for part in parts) == expected
    assert [p.span for p in parts if p.span and p.text != ", "] == [LEFT, RIGHT, LEFT]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Go is first, seven is second: seven is second.", "seven is second."),
        ("Seven.", "Seven."),
        ("a: b: c", "c"),
        ("Time: 12:30", "12:30"),
        ("12:30", "12:30"),
        ("", ""),
    ],
)
def test_an_answer_comes_to_what_stands_after_the_last_colon(answer, expected):
    assert conclusion(answer) == expected


@pytest.mark.parametrize(
    ("said", "score"),
    [("One, two: two.", 1), ("Two.", 1), ("One, two: three.", 0), ("One, two.", 0)],
)
def test_only_the_conclusion_is_judged(said, score):
    assert score_answer(Turn("count", "How many?", "One, two: two."), said) == score


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (Turn("field", "The time?", "Time: 12:30"), "12:30"),
        (Turn("field", "The time?", "Time: 12:30"), "At:  12:30"),
        (Turn("title", "The title?", "Bo Cafe"), "Bo  Cafe"),
        (Turn("amount", "The total?", "4.50"), "Total 2: RM 4.50"),
        (Turn("day", "The date?", "03/05/2018"), "Date: 03 May 18"),
    ],
)
def test_of_what_is_copied_only_the_value_is_judged(turn, said):
    assert score_answer(turn, said) == 1
    assert score_answer(turn, f"{said}1") == 0


def test_an_answer_without_steps_is_shown_as_a_whole():
    assert at_once("Red.", LEFT) == (Part("Red.", LEFT),)
    assert at_once("Red.")[0].span is None
