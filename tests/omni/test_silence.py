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


def kept_seconds(reply) -> tuple[float, float]:
    """When the first kept sound begins, and when the last ends."""
    spans = reply.evidence[0]["spans"]["kept"]
    return spans[0][0], spans[-1][1]


@pytest.mark.parametrize("spec", ["silence(0.5)", "adjacent_merge(0.0)|silence(0.5)"])
def test_the_loud_half_stays(assistant, spec):
    loud, quiet = tiny_omni.tone(1.6), 0.001 * tiny_omni.tone(1.6)
    assert kept_seconds(ask(assistant, np.concatenate([quiet, loud]), spec))[0] >= 1.6
    assert kept_seconds(ask(assistant, np.concatenate([loud, quiet]), spec))[1] <= 1.6 + 0.08


def test_it_works_over_the_border_of_clips(assistant):
    quiet = 0.001 * tiny_omni.tone(31.0)
    waveform = np.concatenate([quiet, tiny_omni.tone(1.0)])
    begin, _ = kept_seconds(ask(assistant, waveform, "silence(0.97)"))
    assert begin >= 31.0 - 2 * 0.08
