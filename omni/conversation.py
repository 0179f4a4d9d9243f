"""A conversation whose follow-up questions do not read its media again.

    turn 1   clip.mp4  "What moves?"      the clip is encoded and read: a session
    turn 2             "Which colour?"    continues from the session
    turn 3   b.png     "And here?"        a new session, of turns 1 to 3 up to the picture
    turn 2 again                          after `rollback(1)`: continues from the first session

Answers are those of `Assistant.chat` with the same turns. Which session belongs to which turns is
found by comparing the turns up to the last medium, so going back, asking again and changing a
question need no code of their own.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omni.assistant import Assistant
from omni.choosing import GenerationOptions
from omni.errors import ContextLengthError, OmniError, RequestError, StoppedError
from omni.ledger import Ledger
from omni.options import MediaOptions
from omni.prompt import Message
from omni.reply import Reply
from omni.session import QUESTION_TOKENS, Session

ANSWER_DEFAULTS = {f.name: f.default for f in fields(GenerationOptions)} | {"thinking": False}
MAX_SESSIONS = 2  # of this conversation: the latest and the one before the last file was added
STOPPED = "Stopped before the first word."


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """A question and what came of it.

    Attributes:
        question: Plain text.
        media: Sources as `Assistant.ask` takes them, before the question.
        answer: The answer; grows while it is streamed, and stays as it is when it is stopped.
        reasoning: What the model thought before.
        error: Why there is no answer. Later questions do not know of such a turn.
        is_complete: Whether the answer came to its end.
    """

    question: str
    media: tuple[Any, ...] = ()
    answer: str = ""
    reasoning: str = ""
    error: str = ""
    is_complete: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether later questions know of it: it has an answer, or the beginning of one."""
        return self.is_complete or bool(self.answer)


class Conversation:
    """Turns, and what was read of their media. One thread at a time may use it.

    Args:
        assistant: Model and processor.
        turns: Turns of an earlier conversation to go on with.
        max_sessions: How many readings of media are kept.
        question_tokens: Left for later questions, beside the one for which media are read, when
            media are made to fit a budget; longer ones have the media read again.
    """

    def __init__(
        self,
        assistant: Assistant,
        turns: Sequence[Turn] = (),
        *,
        max_sessions: int = MAX_SESSIONS,
        question_tokens: int = QUESTION_TOKENS,
    ) -> None:
        self.assistant = assistant
        self.turns = list(turns)
        self.max_sessions = max_sessions
        self.question_tokens = question_tokens
        self.reply: Reply | None = None
        """The reply of the last turn that came to its end."""
        self.is_reused = False
        """Whether the last question continued from what was read before."""
        self.reading: Ledger | None = None
        """What reading the media took, if the last question was the one to have them read."""
        self._sessions: OrderedDict[str, tuple[Session, tuple[Any, ...]]] = OrderedDict()

    def ask(self, question: str, *media: Any, system: str | None = None, **options: Any) -> Reply:
        """Answer the next question; see `stream`."""
        for _ in self.stream(question, *media, system=system, **options):
            pass
        assert self.reply is not None
        return self.reply

    def stream(
        self, question: str, *media: Any, system: str | None = None, **options: Any
    ) -> Iterator[str]:
        """Answer the next question piece by piece; afterwards `reply` is the reply.

        The turn is added when this is called, and grows as pieces are taken, which runs the model.
        Closing the iterator stops the answer; what has been said stays.

        Args:
            question: Plain text.
            media: New files of this turn; those of earlier turns need not be given again.
            system: The system prompt of the whole conversation.
            options: As in `Assistant.chat`. When one that concerns the media differs from the
                question before, the media are read again.

        Raises:
            OmniError: When pieces are taken: as in `Assistant.chat`. The turn then has the message
                as its `error`, and the conversation goes on.
        """
        turn = Turn(question=question, media=media)
        messages = [*_system_turn(system), *self._messages(), _user_turn(turn)]
        self.turns.append(turn)
        self.reply = None
        return self._run(turn, messages, system, options)

    def rollback(self, num_turns: int) -> None:
        """Keep only the first turns; what was read for them is kept too.

        Raises:
            RequestError: There are not as many.
        """
        if not 0 <= num_turns <= len(self.turns):
            raise RequestError(
                f"Cannot keep {num_turns} turns of a conversation of {len(self.turns)}."
            )
        del self.turns[num_turns:]
        self.reply = None

    def has_read(self, *media: Any, **options: Any) -> bool:
        """Whether a first question about these media, with these options, starts at once.

        Args:
            media: As in `stream`.
            options: As in `stream`.
        """
        return _reading_key((), media, _concerning_media(options)) in self._sessions

    def forget(self) -> None:
        """Free what was read; the turns stay, and their media are read again when needed."""
        self._sessions.clear()
        self.reply = None

    # ---------------------------------------------------------------- parts

    def _messages(self) -> list[Message]:
        messages: list[Message] = []
        for turn in self.turns:
            if turn.is_answered:
                messages += [_user_turn(turn), {"role": "assistant", "content": turn.answer}]
        return messages

    def _run(
        self, turn: Turn, messages: list[Message], system: str | None, options: dict[str, Any]
    ) -> Iterator[str]:
        try:
            stream = self._open(messages, system, options)
            for piece in stream:
                if not turn.answer:
                    turn.reasoning = stream.reader.reasoning
                turn.answer += piece
                yield piece
            self.reply = stream.reply()
            turn.is_complete = True
        except StoppedError:
            raise  # what has been said stays
        except OmniError as error:
            turn.error = str(error)
            raise
        finally:
            if not turn.is_answered and not turn.error:
                turn.error = STOPPED

    def _open(self, messages: list[Message], system: str | None, options: dict[str, Any]) -> Any:
        """A stream that answers, of a session where there is one to be had."""
        start = 0 if system is None else 1
        users = range(start, len(messages), 2)
        last = max((i for i in users if len(messages[i]["content"]) > 1), default=None)
        self.is_reused, self.reading = False, None
        if last is None or not self.assistant.model.is_hybrid:
            return self.assistant.stream_chat(messages, **options)
        texts = [m["content"] if isinstance(m["content"], str) else _text(m) for m in messages]
        *history, (question, _) = zip(texts[last::2], [*texts[last + 1 :: 2], ""], strict=True)
        read_with = _concerning_media(options)
        # All of them: what is left out would be as in the question that opened the session.
        ask_with = ANSWER_DEFAULTS | {n: options[n] for n in options if n not in read_with}
        media = [part["media"] for part in messages[last]["content"] if part["type"] == "media"]
        key = _reading_key(messages[:last], media, read_with)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            session, _ = self._sessions[key]
            try:
                stream = session.stream(question, history=history, **ask_with)
                self.is_reused = True
                return stream
            except RequestError as error:
                if not _may_help(error, session, ask_with):
                    raise
                del self._sessions[key]
        session = self.assistant.open(
            *media,
            system=system,
            earlier=messages[start:last],
            question_tokens=self.question_tokens
            + sum(self.assistant.processor.count_tokens(texts[last:])),
            **options,
        )
        self.reading = session.ledger
        while len(self._sessions) >= self.max_sessions:
            self._sessions.popitem(last=False)
        # The media are kept beside the session: an object that is alive keeps its identity, by
        # which arrays and open files are told apart.
        self._sessions[key] = session, tuple(messages[: last + 1])
        return session.stream(question, history=history, **ask_with)


def _may_help(error: RequestError, session: Session, options: dict[str, Any]) -> bool:
    """Whether a question that a session refuses may be answered when the media are read again.

    A budget may have left too little room for it, or the template may put something else before
    the media when the model thinks.
    """
    if isinstance(error, ContextLengthError):
        return session.ledger.budget is not None
    return bool(options.get("thinking")) != session.opened.thinking


def _concerning_media(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a question with which media are read."""
    names = {*MediaOptions.__slots__, "tools"}
    return {name: options[name] for name in options if name in names}


def _reading_key(
    earlier: Sequence[Message], media: Sequence[Any], read_with: Mapping[str, Any]
) -> str:
    """What makes one reading of media as good as another."""
    return repr([[_key(message) for message in earlier], _keys(media), read_with])


def _system_turn(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def _user_turn(turn: Turn) -> Message:
    """Media first, then the question."""
    parts = [{"type": "media", "media": source} for source in turn.media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]}


def _text(message: Message) -> str:
    return str(message["content"][-1]["text"])


def _key(message: Message) -> Any:
    """What makes a turn the same as another."""
    if isinstance(message["content"], str):
        return message["role"], message["content"]
    *media, text = message["content"]
    return message["role"], _keys([part["media"] for part in media]), text["text"]


def _keys(sources: Sequence[Any]) -> list[Any]:
    """Files by path, size and time of change, everything else by identity."""
    keys: list[Any] = []
    for source in sources:
        if isinstance(source, str | os.PathLike) and Path(source).is_file():
            status = Path(source).stat()
            keys.append((os.fspath(source), status.st_size, status.st_mtime_ns))
        else:
            keys.append(source if isinstance(source, str) else id(source))
    return keys
