import json
from pathlib import Path

import numpy as np
import pytest

import omni
from omni.answer_stream import make_request_ledger
from omni.errors import ContextLengthError, MediaNotFoundError, RequestError
from tests.support import tiny_omni

SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def assistant() -> omni.Assistant:
    return tiny_omni.assistant()


def parts(*media, text="What?"):
    content = [{"type": "media", "media": m} for m in media]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def test_streamed_pieces_join_to_the_answer(assistant):
    picture = tiny_omni.picture(40, 40)
    for seed in range(5):
        options = {**SHORT, "temperature": 1.5, "seed": seed}
        streamed = "".join(assistant.stream("What?", picture, **options))
        assert streamed == assistant.ask("What?", picture, **options).text


def test_a_batch_of_conversations_answers_as_each_alone(assistant):
    conversations = [
        parts(tiny_omni.picture(40, 40)),
        parts(text="Hello"),
        parts(tiny_omni.picture(24, 60)),
    ]
    together = assistant.chat_batch(conversations, **SHORT)
    assert together == [assistant.chat(each, **SHORT).text for each in conversations]
    assert assistant.chat_batch([]) == []


def test_the_ledger_counts_what_ran(assistant, tmp_path):
    waveform = tiny_omni.tone(2.5)
    sound = assistant.processor.load_media(waveform, sampling_rate=16_000)
    clip = assistant.processor.load_media(tiny_omni.clip(24, 36, 64), fps=8.0)
    messages = parts(tiny_omni.picture(40, 40))
    reply = assistant.chat(messages, **SHORT)
    ledger = reply.ledger
    assert ledger.prompt_tokens == ledger.text_tokens + sum(
        m.stages[-1].count for m in ledger.media
    )
    assert ledger.answer_tokens <= 12
    assert set(ledger.seconds) == {"prepare", "prefill", "decode", "total"}
    assert set(ledger.media[0].seconds) == {"decode", "encode", "reduce"}
    inputs = assistant.processor.from_text(
        "<video><so_embedding>",
        [clip, sound],
        options=omni.MediaOptions(reduction={"video": "evs(0.5)"}),
    )
    entries = make_request_ledger(assistant, inputs, 0).media
    assert [stage.name for stage in entries[0].stages] == [
        "frames",
        "patches",
        "tubelet(2)",
        "pixel_shuffle(0.5)",
        "evs(0.5)",
        "prompt",
    ]
    assert entries[1].stages[0].count == 32
    json.dumps(ledger.to_dict())


def test_a_plan_is_the_ledger_of_the_request_without_times(assistant):
    picture = tiny_omni.picture(40, 40)
    plan = assistant.plan("What?", picture, max_new_tokens=12)
    reply = assistant.ask("What?", picture, **SHORT)
    assert plan.prompt_tokens == reply.ledger.prompt_tokens
    assert plan.media[0].stages == reply.ledger.media[0].stages
    assert plan.seconds == {}


def test_a_streamed_answer_has_the_plan_before_and_the_reply_after_it(assistant):
    clip = assistant.processor.load_media(tiny_omni.clip(16, 40, 60), fps=8.0)
    budget = {**SHORT, "max_tokens": 300}
    stream = assistant.stream("What?", clip, **budget)
    plan = assistant.plan("What?", clip, **budget)
    assert plan.lowered
    assert stream.plan == plan
    text = "".join(stream)
    reply = assistant.ask("What?", clip, **budget)
    assert (stream.reply().text, reply.text) == (text, text)
    assert stream.reply().ledger.media[0].stages == reply.ledger.media[0].stages
    assert stream.reply().ledger.lowered == plan.lowered


def test_evidence_counts_what_the_decoder_read(assistant):
    clip = Path(__file__).parents[2] / "examples" / "media" / "clip.mp4"
    reply = assistant.ask("What?", clip, reduction={"video": "evs(0.5)"}, **SHORT)
    [entry], [counted] = reply.evidence, reply.ledger.media
    assert entry["tokens"] == entry["kept"] == counted.stages[-2].count
    assert entry["kept"] + entry["dropped"] == counted.stages[-3].count
    assert sum(step["kept"] for step in entry["steps"]) == entry["kept"]
    assert entry["steps"][0]["state"] == "used"
    json.dumps(reply.evidence)


def test_a_budget_that_is_too_small_is_refused_with_the_numbers(assistant):
    with pytest.raises(ContextLengthError, match=r"room for 12 of an answer.*budget is 20"):
        assistant.ask("What?", tiny_omni.picture(40, 40), max_tokens=20, **SHORT)


def test_an_unknown_option_raises_and_names_the_known_ones(assistant):
    with pytest.raises(TypeError, match=r"'temprature'.*temperature"):
        assistant.ask("What?", temprature=1)


def test_a_missing_file_raises(assistant):
    with pytest.raises(MediaNotFoundError, match=r"no\.jpg"):
        assistant.ask("What?", "no.jpg")


def test_thinking_is_kept_apart_from_the_answer(assistant):
    reply = assistant.ask(
        "What?", thinking=True, reasoning_budget=3, reasoning_grace=0, max_new_tokens=20
    )
    assert "</think>" not in reply.text
    assert reply.ledger.answer_tokens <= 20


def test_no_message_at_all_raises(assistant):
    with pytest.raises(RequestError, match="at least one message"):
        assistant.chat([])


def test_a_saved_assistant_answers_the_same(assistant, tmp_path):
    assistant.model.save_pretrained(tmp_path)
    assistant.processor.save_pretrained(tmp_path)
    again = omni.load(tmp_path)
    picture = np.asarray(tiny_omni.picture(40, 40))
    assert (
        again.ask("What?", picture, **SHORT).text == assistant.ask("What?", picture, **SHORT).text
    )
