"""Answers by time are those about the cut-out stretches, in order, and cover the whole."""

from copy import deepcopy
from pathlib import Path

import pytest

from omni.errors import RequestError, StoppedError
from omni.media import load_media
from omni.stopping import Stop, stoppable
from omni.transcript import transcribe
from tests.support import tiny_omni

MEDIA = Path(__file__).parents[2] / "examples" / "media"
ASSISTANT = tiny_omni.assistant()
SHORT = {"max_new_tokens": 6}


@pytest.mark.parametrize("name", ["words.flac", "clip.mp4"])
def test_each_stretch_is_answered_as_if_it_were_alone(name):
    medium = load_media(MEDIA / name)
    seen = [
        deepcopy(found)
        for found in transcribe(ASSISTANT, "What?", MEDIA / name, chunk_s=1, **SHORT)
    ]
    passages = seen[-1]
    assert [passage.start_s for passage in passages] == list(range(len(passages)))
    assert [passage.end_s for passage in passages[:-1]] == list(range(1, len(passages)))
    assert passages[-1].end_s >= medium.duration_s
    assert all(passage.is_complete for passage in passages)
    for passage in passages:
        alone = medium.part(passage.start_s, passage.end_s)
        assert passage.text == ASSISTANT.ask("What?", alone, **SHORT).text
    lengths = [sum(len(passage.text) for passage in found) for found in seen]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > len(passages)  # rows grow


def test_a_short_recording_is_one_stretch():
    *_, passages = transcribe(ASSISTANT, "What?", MEDIA / "recording.wav", chunk_s=30, **SHORT)
    [passage] = passages
    assert (passage.start_s, passage.end_s) == (0, pytest.approx(1, abs=0.01))
    assert passage.text == ASSISTANT.ask("What?", MEDIA / "recording.wav", **SHORT).text


def test_a_stop_leaves_the_rows_so_far():
    stop = Stop()
    rows = transcribe(ASSISTANT, "What?", MEDIA / "words.flac", chunk_s=1, **SHORT)
    with stoppable(stop):
        passages = next(found for found in rows if len(found) == 2)
        stop.request()
        with pytest.raises(StoppedError):
            list(rows)
    assert [passage.is_complete for passage in passages] == [True, False]


def test_what_has_no_time_and_too_short_stretches_are_refused():
    with pytest.raises(RequestError, match=r"digit\.png has no time"):
        next(transcribe(ASSISTANT, "What?", MEDIA / "digit.png", chunk_s=1))
    with pytest.raises(RequestError, match=r"chunk_s=0\.5"):
        next(transcribe(ASSISTANT, "What?", MEDIA / "words.flac", chunk_s=0.5))
