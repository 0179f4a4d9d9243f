"""`silence` in a request: the quiet part of a recording goes, whatever else is in the batch."""

import numpy as np
import pytest

from tests.support import tiny_omni


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


def ask(assistant, waveform, spec: str):
    medium = assistant.processor.load_media(waveform, sampling_rate=16_000)
    message = {"role": "user", "content": [{"type": "audio", "audio": medium}]}
    return assistant.chat([message], reduction={"audio": spec}, max_new_tokens=1)


def kept_steps(reply) -> list[int]:
    return [i for i, step in enumerate(reply.evidence[0]["steps"]) if step["kept"]]


@pytest.mark.parametrize("spec", ["silence(0.5)", "adjacent_merge(0.0)|silence(0.5)"])
def test_the_loud_half_stays(assistant, spec):
    loud, quiet = tiny_omni.tone(1.6), 0.001 * tiny_omni.tone(1.6)
    assert min(kept_steps(ask(assistant, np.concatenate([quiet, loud]), spec))) >= 20
    assert max(kept_steps(ask(assistant, np.concatenate([loud, quiet]), spec))) < 21


def test_it_works_over_the_border_of_clips(assistant):
    quiet = 0.001 * tiny_omni.tone(31.0)
    waveform = np.concatenate([quiet, tiny_omni.tone(1.0)])
    steps = kept_steps(ask(assistant, waveform, "silence(0.97)"))
    assert min(steps) >= int(31.0 / 0.08) - 1
