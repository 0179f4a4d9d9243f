"""The reducers that are offered for a modality can be run, and shorten the prompt."""

import pytest

from omni.reduction import reducers_with_rate
from tests.support import tiny_omni
from token_reduction import build

ASSISTANT = tiny_omni.assistant()


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_each_makes_the_plan_of_a_medium_shorter(modality):
    medium = {
        "image": tiny_omni.picture(90, 90),
        "video": "examples/media/clip.mp4",
        "audio": "examples/media/recording.wav",
    }[modality]
    names = reducers_with_rate(modality, ASSISTANT.model.config)
    assert "uniform" in names
    whole = ASSISTANT.plan("?", medium, reduction={modality: "identity"}).prompt_tokens
    for name in names:
        plan = ASSISTANT.plan("?", medium, reduction={modality: f"{name}(0.5)"})
        assert plan.prompt_tokens < whole, name


def test_what_needs_training_is_offered_only_if_it_was_trained():
    assert build("learned(0.5)")
    assert "learned" not in reducers_with_rate("video", ASSISTANT.model.config)
