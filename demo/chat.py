"""A visitor's chat: the conversation, how it is shown, and how the browser keeps it.

The conversation stays on the server; the browser sends a question, or which turn to go back to.
What it saves is text and names of files, never files.
"""

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.models import Models
from demo.visitors import Visitor
from omni.conversation import STOPPED, Conversation, Turn

NAME = "chat"  # under which a visitor keeps it
MOST_SAVED = 30  # conversations that the browser keeps
MOST_SAVED_CHARACTERS = 100_000  # of one conversation; browsers keep about 5 MB for a site
TITLE_CHARACTERS = 48

Message = dict[str, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Chat:
    """What is kept of a visitor's chat.

    Attributes:
        conversation: Turns, and what was read of their media.
        pending: Questions that wait in the queue, the next first.
        is_answering: Whether one is being answered.
        lost_files: For each turn that was opened from a saved conversation, the names of its files.
        saved_id: Under which name the browser saves it.
    """

    conversation: Conversation
    pending: list[Turn] = field(default_factory=list)
    is_answering: bool = False
    lost_files: list[tuple[str, ...]] = field(default_factory=list)
    saved_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def turns(self) -> list[Turn]:
        """All turns that are shown."""
        return [*self.conversation.turns, *self.pending]

    @property
    def is_busy(self) -> bool:
        """Whether an answer is on its way."""
        return self.is_answering or bool(self.pending)

    def forget(self) -> None:
        """Free what was read of media; the turns stay."""
        self.conversation.forget()

    def stop(self) -> None:
        """Note that nothing of what waits or runs is answered any more."""
        self.conversation.turns += self.pending
        self.pending.clear()
        for turn in self.conversation.turns:
            if not turn.is_answered and not turn.error:
                turn.error = STOPPED

    def rollback(self, num_turns: int) -> None:
        """Keep only the first turns."""
        self.pending.clear()
        self.conversation.rollback(min(num_turns, len(self.conversation.turns)))
        del self.lost_files[num_turns:]

    # ---------------------------------------------------------------- what is shown

    def messages(self) -> list[Message]:
        """As `gr.Chatbot` shows them: files, question, reasoning and answer one below another."""
        return [message for i in range(len(self.turns)) for message in self._messages_of(i)]

    def turn_of_message(self, index: int) -> int:
        """Which turn a shown message belongs to.

        Args:
            index: Its place in `messages`.
        """
        for place in range(len(self.turns)):
            index -= len(self._messages_of(place))
            if index < 0:
                return place
        return len(self.turns)

    def _messages_of(self, place: int) -> list[Message]:
        turn = self.turns[place]
        lost = self.lost_files[place] if place < len(self.lost_files) else ()
        asked: list[Any] = [{"path": str(path), "alt_text": Path(path).name} for path in turn.media]
        asked += [f"*{name}: no longer here; add the file again to ask on*" for name in lost]
        asked += [turn.question] if turn.question or not asked else []
        shown: list[Message] = [{"role": "user", "content": asked}]
        if turn.reasoning:
            state = "done" if turn.answer or turn.is_complete else "pending"
            shown.append(
                {
                    "role": "assistant",
                    "content": turn.reasoning,
                    "metadata": {"title": "Reasoning", "status": state},
                }
            )
        if turn.is_answered:
            shown.append({"role": "assistant", "content": turn.answer or "*(an empty answer)*"})
        elif turn.error:
            shown.append({"role": "assistant", "content": f"**Not answered.** {turn.error}"})
        return shown

    # ---------------------------------------------------------------- what the browser keeps

    def to_saved(self) -> dict[str, Any] | None:
        """As JSON types: text and names of files; None where nothing was said."""
        turns = [turn for turn in self.conversation.turns if turn.is_answered or turn.error]
        if not turns:
            return None
        saved = [
            {
                "question": turn.question,
                "files": [*self._lost(place), *(Path(path).name for path in turn.media)],
                "answer": turn.answer,
                "reasoning": turn.reasoning,
                "error": turn.error,
            }
            for place, turn in enumerate(turns)
        ]
        while sum(len(str(turn)) for turn in saved) > MOST_SAVED_CHARACTERS and len(saved) > 1:
            saved.pop(0)
        first = turns[0].question or (saved[0]["files"] or ["Conversation"])[0]
        title = " ".join(str(first).split())[:TITLE_CHARACTERS]
        return {"id": self.saved_id, "title": title, "time": time.time(), "turns": saved}

    def _lost(self, place: int) -> tuple[str, ...]:
        return self.lost_files[place] if place < len(self.lost_files) else ()


def chat_of(visitor: Visitor, models: Models) -> Chat:
    """The visitor's chat, with the model that they chose; new on the first call.

    Raises:
        OmniError: The model cannot be loaded.
    """
    assistant = models.get(visitor.choice).assistant
    chat = visitor.things.get(NAME)
    if not isinstance(chat, Chat):
        chat = visitor.things[NAME] = Chat(conversation=Conversation(assistant))
    elif chat.conversation.assistant is not assistant:
        chat.conversation = Conversation(assistant, chat.conversation.turns)
    return chat


def open_saved(saved: Any, conversation: Conversation) -> Chat | None:
    """A chat as the browser kept it; None where that is not one of ours.

    Args:
        saved: From `Chat.to_saved`, but it has been in other hands.
        conversation: A new one.
    """
    try:
        turns = [
            Turn(
                question=str(turn["question"]),
                answer=str(turn["answer"]),
                reasoning=str(turn["reasoning"]),
                error=str(turn["error"]),
                is_complete=not turn["error"],
            )
            for turn in saved["turns"]
        ]
        files = [tuple(str(name) for name in turn["files"]) for turn in saved["turns"]]
        conversation.turns = turns
        return Chat(conversation=conversation, lost_files=files, saved_id=str(saved["id"]))
    except (KeyError, TypeError):
        return None


def with_saved(kept: Any, chat: Chat) -> list[dict[str, Any]]:
    """What the browser keeps from now on: this conversation first, of the others the latest."""
    others = [entry for entry in saved_ones(kept) if entry["id"] != chat.saved_id]
    saved = chat.to_saved()
    return ([] if saved is None else [saved]) + others[: MOST_SAVED - 1]


def saved_ones(kept: Any) -> list[dict[str, Any]]:
    """Conversations in what the browser sent; what is not one is left out."""
    if not isinstance(kept, list):
        return []
    return [
        entry
        for entry in kept
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and "title" in entry
    ]


def saved_names(kept: Any) -> list[tuple[str, str]]:
    """Title with time, and id, of each saved conversation, for a list to choose from."""
    names = []
    for entry in saved_ones(kept):
        moment = time.strftime("%d %b %H:%M", time.localtime(float(entry.get("time") or 0)))
        names.append((f"{entry['title']} · {moment}", entry["id"]))
    return names
