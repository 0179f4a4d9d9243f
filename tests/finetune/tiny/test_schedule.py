"""Laws of schedules: a run ends by steps or clock, and even a short one reaches its rates."""

import pytest

from finetune.tiny.schedule import share_of_run, warm_up
from finetune.tiny.train_audio import AudioTraining, schedule_at
from finetune.tiny.train_joint import JointTraining
from finetune.tiny.train_vision import VisionTraining


@pytest.mark.parametrize(
    ("step", "seconds", "minutes", "share"),
    [
        (50, 60, 10, 0.5),
        (50, 540, 10, 0.9),
        (100, 1, 10, 1.0),
        (1, 6000, 10, 1.0),
        (50, 9e9, None, 0.5),
    ],
)
def test_a_run_is_over_by_steps_or_by_the_clock_whichever_comes_first(
    step, seconds, minutes, share
):
    assert share_of_run(step, 100, seconds, minutes) == share


def test_a_warm_up_rises_by_equal_steps_and_takes_a_fifth_of_a_short_run():
    assert [warm_up(step, 1000, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [warm_up(step, 20, 300) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 1, 300) == 1.0


@pytest.mark.parametrize("steps", [20, 100, 5000])
def test_every_stage_reaches_nearly_its_rates_however_short(steps):
    audio, vision = AudioTraining(steps=steps), VisionTraining(steps=steps)
    joint = JointTraining(steps=steps)
    assert max(schedule_at(step, step / steps, audio) for step in range(steps)) > 0.9
    assert max(vision.schedule_at(step) for step in range(steps)) > 0.9
    assert max(joint.schedule_at(step, step / steps) for step in range(steps)) == 1.0
