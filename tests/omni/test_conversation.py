"""A conversation answers as a fresh chat with the same turns, and reads its media once."""

from typing import Any

import PIL.Image
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from omni.conversation import STOPPED, Conversation, Turn
from omni.errors import ContextLengthError, CorruptMediaError, RequestError
from omni.media import load_media
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
SHORT: dict[str, Any] = {"max_new_tokens": 6}
MEDIA = {
    "image": tiny_omni.picture(40, 36),
    "video": load_media(tiny_omni.clip(8, 36, 64), fps=8.0),
    "audio": load_media(tiny_omni.tone(0.7), sampling_rate=16_000),
}

questions = st.fixed_dictionaries(
    {
        "question": st.sampled_from(["What?", "", "Who\n\nspeaks?\n", "日本"]),
        "media": st.lists(st.sampled_from(sorted(MEDIA)), max_size=2),
        "options": st.fixed_dictionaries(
            {},
            optional={
                "system": st.just("Be brief."),
                "num_frames": st.just(4),
                "reduction": st.just({"image": "uniform(0.5)"}),
                "thinking": st.just(True),
                "temperature": st.just(1.0),
            },
        ),
    }
)
steps = st.lists(st.one_of(questions, st.integers(0, 5)), min_size=2, max_size=5)


def fresh_answer(turns: list[Turn], asked: dict[str, Any], media: list[Any]) -> str:
    """What a chat without a memory says."""
    options = dict(asked["options"])
    system = options.pop("system", None)
    messages: list[dict[str, Any]] = []
    for turn in [*turns, Turn(question=asked["question"], media=tuple(media))]:
        parts = [{"type": "media", "media": medium} for medium in turn.media]
        text = {"type": "text", "text": turn.question}
        messages += [{"role": "user", "content": [*parts, text]}]
        messages += [{"role": "assistant", "content": turn.answer}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return ASSISTANT.chat(messages[:-1], **SHORT, **options).text


@settings(max_examples=6, phases=[Phase.generate])
@given(steps=steps)
def test_answers_are_those_of_a_chat_with_the_same_turns(steps) -> None:
    conversation = Conversation(ASSISTANT)
    for step in steps:
        if isinstance(step, int):
            conversation.rollback(min(step, len(conversation.turns)))
            continue
        media = [MEDIA[name] for name in step["media"]]
        expected = fresh_answer(conversation.turns, step, media)
        found = conversation.ask(step["question"], *media, **SHORT, **step["options"])
        assert found.text == conversation.turns[-1].answer == expected
        assert found.reasoning == conversation.turns[-1].reasoning


@pytest.mark.parametrize(
    "first",
    [
        {"max_new_tokens": 1},
        {"schema": {"enum": ["a"]}},
        {"thinking": True, "reasoning_budget": 1},
        {"temperature": 1.0, "seed": 7},
    ],
)
def test_a_question_does_not_inherit_the_options_of_the_one_before(first) -> None:
    conversation = Conversation(ASSISTANT)
    medium = MEDIA["image"]
    conversation.ask("What?", medium, **{**SHORT, **first})
    asked = {"question": "And then?", "options": {}}
    expected = fresh_answer(conversation.turns, asked, [])
    found = conversation.ask("And then?", **SHORT)
    assert (found.text, found.parsed) == (expected, None)


def test_media_are_read_again_only_when_they_or_their_settings_change() -> None:
    conversation = Conversation(ASSISTANT)

    def is_reused(*media: Any, **options: Any) -> bool:
        conversation.ask("What?", *media, **{**SHORT, **options})
        return conversation.is_reused

    assert not is_reused()  # there is nothing to read
    assert not is_reused(MEDIA["image"])
    assert is_reused()
    assert is_reused(temperature=1.0, seed=3, thinking=True, max_new_tokens=3)
    assert not is_reused(reduction={"image": "uniform(0.5)"})
    assert is_reused()  # the session before is still there
    assert not is_reused(system="Be brief.")
    assert not is_reused(MEDIA["audio"])
    conversation.rollback(7)
    assert is_reused(system="Be brief.")
    conversation.rollback(1)
    assert not is_reused(MEDIA["image"], MEDIA["image"])
    conversation.forget()
    assert not is_reused()


def test_a_file_that_changed_is_read_again(tmp_path) -> None:
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(tiny_omni.picture(40, 36)).save(path)
    conversation = Conversation(ASSISTANT)
    conversation.ask("What?", path, **SHORT)
    PIL.Image.fromarray(tiny_omni.picture(44, 36)).save(path)
    conversation.ask("What?", **SHORT)
    assert not conversation.is_reused


def test_a_bad_file_is_an_error_of_its_turn_and_the_conversation_goes_on(tmp_path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    conversation = Conversation(ASSISTANT)
    first = conversation.ask("What?", MEDIA["image"], **SHORT)
    with pytest.raises(CorruptMediaError, match=r"bad\.png"):
        conversation.ask("And this?", bad, **SHORT)
    assert "bad.png" in conversation.turns[-1].error
    assert not conversation.turns[-1].is_answered
    second = conversation.ask("What?", **SHORT)
    assert conversation.is_reused
    assert second.evidence == first.evidence
    with pytest.raises(RequestError, match="media marker, '<image>'"):
        conversation.ask("What is <image>?", **SHORT)


def test_what_was_said_before_a_stop_stays() -> None:
    conversation = Conversation(ASSISTANT)
    stream = conversation.stream("What?", MEDIA["image"], max_new_tokens=40)
    said = next(stream)
    stream.close()
    turn = conversation.turns[-1]
    assert (turn.answer, turn.error, turn.is_complete) == (said, "", False)
    conversation.ask("And?", **SHORT)
    assert conversation.is_reused

    stream = conversation.stream("What?", thinking=True, max_new_tokens=40)
    assert next(stream) == ""  # a token of reasoning
    stream.close()
    assert conversation.turns[-1].error == STOPPED
    assert conversation.turns[-1].reasoning
    assert not conversation.turns[-1].is_answered


def test_a_question_that_a_budget_left_no_room_for_reads_the_media_again() -> None:
    recording = load_media(tiny_omni.tone(20.0), sampling_rate=16_000)  # 250 tokens
    conversation = Conversation(ASSISTANT)
    options = {**SHORT, "max_tokens": 450}
    assert not conversation.ask("What?", recording, **options).ledger.lowered
    long = "Why? " * 30  # 150 tokens; 128 were left
    assert conversation.ask(long, **options).ledger.lowered
    assert not conversation.is_reused
    conversation.rollback(1)
    conversation.ask("What?", **options)
    assert conversation.is_reused
    with pytest.raises(ContextLengthError, match="the budget is 450 tokens"):
        conversation.ask(long * 3, **options)


def test_decoders_without_sessions_converse_too() -> None:
    text = LlamaConfig(
        vocab_size=tiny_omni.VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    ).to_dict()
    conversation = Conversation(tiny_omni.assistant(text_config=text))
    conversation.ask("What?", MEDIA["image"], **SHORT)
    conversation.ask("And?", **SHORT)
    assert [turn.is_complete for turn in conversation.turns] == [True, True]


def test_it_cannot_be_rolled_back_to_more_than_there_is() -> None:
    with pytest.raises(RequestError, match="keep 2 turns of a conversation of 0"):
        Conversation(ASSISTANT).rollback(2)
