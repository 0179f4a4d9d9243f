"""A chat is shown as it stands, every shown message belongs to its turn, and a browser keeps it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.chat import MOST_SAVED, Chat, open_saved, saved_names, saved_ones, with_saved
from demo.chat_tab import _Handlers
from demo.models import Models
from demo.samples import COLOUR, DIGIT, WORD
from demo.visitors import Visitors
from omni.conversation import STOPPED, Conversation, Turn

words = st.text(max_size=12)
turns = st.builds(
    Turn,
    question=words,
    media=st.lists(st.sampled_from([Path("a.png"), Path("b.pdf")]), max_size=2).map(tuple),
    answer=words,
    reasoning=words,
    error=words,
    is_complete=st.booleans(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "title", "turns", "question"]), inner, max_size=4)
    ),
    max_leaves=8,
)


def chat_of(turns: list[Turn], pending: Sequence[Turn] = ()) -> Chat:
    conversation: Any = Conversation.__new__(Conversation)  # no model is asked here
    conversation.turns, conversation.reply = list(turns), None
    return Chat(conversation=conversation, pending=list(pending))


@given(st.lists(turns, max_size=4), st.lists(turns, max_size=2))
def test_every_message_belongs_to_the_turn_that_it_shows(before, pending) -> None:
    chat = chat_of(before, pending)
    index = 0
    for place, turn in enumerate(chat.turns):
        alone = chat_of([turn]).messages()
        for message in alone:
            assert chat.turn_of_message(index) == place
            assert chat.messages()[index] == message
            index += 1
        assert alone[0]["role"] == "user"
        assert all(message["role"] == "assistant" for message in alone[1:])
        files = [part["path"] for part in alone[0]["content"] if isinstance(part, dict)]
        assert files == [str(path) for path in turn.media]
    assert len(chat.messages()) == index
    assert chat.turn_of_message(index) == len(chat.turns)


@given(st.lists(turns, min_size=1, max_size=4))
def test_a_saved_conversation_says_the_same_when_it_is_opened(before) -> None:
    chat = chat_of(before)
    kept = with_saved([], chat)
    said = [turn for turn in before if turn.is_answered or turn.error]
    assert len(kept) == bool(said)
    if not said:
        return
    opened = open_saved(kept[0], chat_of([]).conversation)
    assert opened is not None
    assert [(t.question, t.answer, t.reasoning, t.error) for t in opened.turns] == [
        (t.question, t.answer, t.reasoning, t.error) for t in said
    ]
    assert opened.lost_files == [tuple(path.name for path in t.media) for t in said]
    assert not any(t.media for t in opened.turns)
    assert with_saved(kept, opened)[0]["turns"] == kept[0]["turns"]  # in the place of the first


def test_the_browser_keeps_the_latest_conversations() -> None:
    kept: list[dict[str, Any]] = []
    for number in range(MOST_SAVED + 5):
        kept = with_saved(kept, chat_of([Turn(question=f"number {number}", answer="yes")]))
    assert len(kept) == MOST_SAVED
    assert saved_names(kept)[0][0].startswith(f"number {MOST_SAVED + 4} ")


@given(json_values)
def test_what_a_browser_sends_in_place_of_saved_conversations_does_no_harm(sent) -> None:
    for entry in saved_ones(sent):
        open_saved(entry, chat_of([]).conversation)
    assert all(isinstance(name, str) for name, _ in saved_names(sent))
    assert len(with_saved(sent, chat_of([Turn(question="?", answer="!")]))) >= 1


def test_a_turn_without_an_answer_says_why() -> None:
    shown = chat_of([Turn(question="?", error="bad.png: found nothing")]).messages()
    assert shown[-1]["content"] == "**Not answered.** bad.png: found nothing"
    shown = chat_of(
        [Turn(question="?", reasoning="Hm.", answer="Yes", is_complete=True)]
    ).messages()
    assert shown[1]["metadata"] == {"title": "Reasoning", "status": "done"}
    assert [message["content"] for message in shown[1:]] == ["Hm.", "Yes"]


CONTROLS = ("", 0, 1, 16, 0, False, 0)  # system, temperature, ..., as the page sends them


class Page:
    """The events of a page, one after another, without a browser."""

    def __init__(self, folder: Path) -> None:
        self.handlers = _Handlers(Models(), Visitors(folder))
        self.request: Any = SimpleNamespace(session_hash="tab")

    def send(self, sample: Any) -> None:
        self.handlers.send_sample(sample)(self.request)

    def answer(self) -> Any:
        return self.handlers.answer(*CONTROLS, self.request)

    def settle(self) -> Any:
        return self.handlers.settle([], self.request)

    @property
    def said(self) -> list[tuple[str, str]]:
        _, chat = self.handlers._enter(self.request)
        return [(Path(turn.media[0]).name, turn.answer or turn.error) for turn in chat.turns]


@pytest.fixture
def page(tmp_path) -> Page:
    return Page(tmp_path)


def test_questions_that_wait_are_answered_one_after_another(page) -> None:
    page.send(DIGIT)
    page.send(WORD)
    for _ in range(2):
        list(page.answer())
        page.settle()
    assert list(page.answer()) == []
    assert page.said == [("digit.png", "Three."), ("recording.wav", "Seven.")]


@pytest.mark.parametrize("settled_first", [True, False])
def test_a_question_may_be_asked_while_another_is_answered(page, settled_first) -> None:
    page.send(DIGIT)
    first = page.answer()
    next(first, None)
    page.send(WORD)
    list(first)
    if settled_first:
        _, box, _ = page.settle()
        assert box.stop_btn  # the next one waits
        list(page.answer())
    else:
        second = page.answer()
        next(second, None)
        page.settle()
        list(second)
    _, box, _ = page.settle()
    assert not box.stop_btn
    assert page.said == [("digit.png", "Three."), ("recording.wav", "Seven.")]


def test_a_stop_also_ends_what_waits(page) -> None:
    page.send(DIGIT)
    page.send(WORD)
    page.handlers.stop([], page.request)
    assert list(page.answer()) == []
    assert page.said == [("digit.png", STOPPED), ("recording.wav", STOPPED)]


def test_a_question_that_is_asked_again_replaces_what_waits_and_runs(page) -> None:
    page.send(COLOUR)
    list(page.answer())
    page.send(DIGIT)
    running = page.answer()
    next(running, None)
    page.send(WORD)
    event: Any = SimpleNamespace(index=0)
    page.handlers.retry(event, page.request)
    list(running)
    list(page.answer())
    page.settle()
    [(_, answer)] = page.said
    assert answer not in ("", STOPPED)
