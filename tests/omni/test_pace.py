"""Estimates of time follow from what earlier answers took."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.ledger import Ledger
from omni.pace import Pace
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
PLAN = ASSISTANT.plan("What?", tiny_omni.picture(60, 80), max_new_tokens=20)
TEXT = ASSISTANT.plan("What?", max_new_tokens=20)


def finished(plan: Ledger, media_s: float, prompt_s: float, answer_s: float) -> Ledger:
    """The ledger of a reply to a plan that took so long."""
    media = [replace(entry, seconds={"encode": media_s}) for entry in plan.media]
    seconds = {"prefill": media_s + prompt_s, "decode": answer_s}
    return replace(plan, media=media, seconds={**seconds, "total": sum(seconds.values())})


def test_nothing_is_said_before_the_first_answer():
    assert Pace().estimate(PLAN) is None


def test_a_plan_without_times_teaches_nothing():
    pace = Pace()
    pace.note(PLAN)
    assert pace.estimate(PLAN) is None


def test_media_are_not_estimated_from_answers_about_text():
    pace = Pace()
    pace.note(finished(TEXT, 0.0, 1.0, 1.0))
    assert pace.estimate(TEXT) is not None
    assert pace.estimate(PLAN) is None


@given(st.tuples(*[st.floats(0.01, 100)] * 3), st.integers(1, 4))
def test_the_same_request_is_estimated_to_take_as_long_again(seconds, times):
    pace = Pace()
    for _ in range(times):
        pace.note(finished(PLAN, *seconds))
    estimate = pace.estimate(PLAN)
    assert estimate.first_word_s == pytest.approx(seconds[0] + seconds[1])
    assert estimate.last_word_s == pytest.approx(sum(seconds))


@given(st.floats(1.1, 10))
def test_recent_answers_count_more(factor):
    slower, faster = Pace(), Pace()
    for pace, order in ((slower, (1.0, factor)), (faster, (factor, 1.0))):
        for seconds in order:
            pace.note(finished(PLAN, seconds, seconds, seconds))
    assert slower.estimate(PLAN).last_word_s > faster.estimate(PLAN).last_word_s


def test_a_longer_answer_takes_longer_but_its_first_word_comes_as_soon():
    pace = Pace()
    pace.note(finished(PLAN, 1.0, 1.0, 1.0))
    short, long = pace.estimate(PLAN), pace.estimate(replace(PLAN, answer_tokens=200))
    assert long.first_word_s == short.first_word_s
    assert long.last_word_s == pytest.approx(short.first_word_s + 10.0)
