"""Work ends at its next check once another thread wishes it, and leaves everything usable."""

import threading
from typing import Any

import pytest
import torch

import omni.encoding
import omni.generation
from omni.conversation import STOPPED, Conversation
from omni.errors import StoppedError
from omni.generation import prefill
from omni.stopping import Stop, check_stop, stoppable
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
LONG: dict[str, Any] = {"max_new_tokens": 40}


def test_a_wish_counts_inside_its_block_and_in_its_thread_alone():
    stop = Stop()
    stop.request()
    check_stop()
    with stoppable(stop):
        with pytest.raises(StoppedError):
            check_stop()
        with stoppable(Stop()):
            check_stop()
        elsewhere: list[str] = []
        thread = threading.Thread(target=lambda: elsewhere.append(str(check_stop())))
        thread.start()
        thread.join()
        assert elsewhere == ["None"]
    check_stop()


def stop_after(monkeypatch, module: Any, stop: Stop, checks: int) -> list[int]:
    """Let a wish come while work is at its n-th check; what is returned counts them."""
    count = [0]

    def check() -> None:
        count[0] += 1
        if count[0] == checks:
            stop.request()
        check_stop()

    monkeypatch.setattr(module, "check_stop", check)
    return count


@pytest.mark.parametrize("checks", [1, 2, 4])
def test_reading_a_prompt_ends_between_two_of_its_pieces(monkeypatch, checks):
    inputs = ASSISTANT.prepare([{"role": "user", "content": "Word " * 40}])
    whole = prefill(ASSISTANT.model, inputs, chunk=16).logits
    stop = Stop()
    count = stop_after(monkeypatch, omni.generation, stop, checks)
    with stoppable(stop), pytest.raises(StoppedError):
        prefill(ASSISTANT.model, inputs, chunk=16)
    assert count[0] == checks  # nothing was read behind it
    monkeypatch.undo()
    torch.testing.assert_close(prefill(ASSISTANT.model, inputs, chunk=16).logits, whole)


def test_encoding_ends_between_two_windows(monkeypatch):
    stop = Stop()
    count = stop_after(monkeypatch, omni.encoding, stop, 2)
    pictures = [tiny_omni.picture(40, 36), tiny_omni.picture(36, 40), tiny_omni.picture(44, 36)]
    with stoppable(stop), pytest.raises(StoppedError):
        ASSISTANT.ask("What?", *pictures, **LONG)
    assert count[0] == 2


def test_a_conversation_goes_on_after_a_stop():
    conversation = Conversation(ASSISTANT)
    stop = Stop()
    stop.request()
    with stoppable(stop), pytest.raises(StoppedError):
        conversation.ask("What?", tiny_omni.picture(40, 36), **LONG)
    assert conversation.turns[-1].error == STOPPED

    stop = Stop()
    pieces = conversation.stream("And now?", tiny_omni.picture(40, 36), **LONG)
    with stoppable(stop):
        said = next(piece for piece in pieces if piece.strip())
        stop.request()
        with pytest.raises(StoppedError):
            next(pieces)
    turn = conversation.turns[-1]
    assert said in turn.answer
    assert (turn.error, turn.is_complete) == ("", False)
    conversation.rollback(0)
    picture = tiny_omni.picture(40, 36)
    alone = ASSISTANT.ask("What?", picture, **LONG)
    assert conversation.ask("What?", picture, **LONG).text == alone.text
