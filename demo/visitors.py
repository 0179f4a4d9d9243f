"""Who is visiting, and what is kept for them: one `Visitor` a browser tab, freed when it goes.

Nothing of a visitor is kept anywhere else, so that forgetting one is one call, and two never meet.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from demo.models import Choice
from omni.assistant import Assistant
from omni.errors import MediaAccessError
from omni.stopping import Stop

IDLE_SECONDS = 2 * 3600.0  # a tab that says nothing for so long is taken for closed
SAME_TIME = 946_684_800  # the first second of 2000, as the time of change of all uploads
MOST_READ = 32  # visitors whose media stay read; of others the media are read again when needed

T = TypeVar("T")


class Kept(Protocol):
    """What a tab of the page keeps for a visitor."""

    def forget(self) -> None:
        """Free what was read of media; what was said stays."""


@dataclass(slots=True, kw_only=True, eq=False)
class Visitor:
    """What is kept for one browser tab.

    Attributes:
        things: Whatever the tabs of the page keep, by name: `Visitor.thing`.
        files: Uploaded files that were used, removed with the visitor.
        stops: What ends the answer that is being made, by the name of its tab.
        choice: Which model answers them; None is the default.
        seen: When something was asked last, on the monotonic clock.
    """

    things: dict[str, Kept] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    stops: dict[str, Stop] = field(default_factory=dict)
    choice: Choice | None = None
    seen: float = field(default_factory=time.monotonic)

    def start(self, name: str) -> Stop:
        """What will stop the answer that begins now.

        Args:
            name: Of the tab.
        """
        self.stops[name] = Stop()
        return self.stops[name]

    def stop(self, name: str) -> None:
        """Let the answer that a tab is making end at once."""
        if name in self.stops:
            self.stops[name].request()


class Visitors:
    """All visitors, by the hash that gradio gives each browser tab. Any thread may call.

    Args:
        upload_folder: Where uploads lie; no file outside it is ever removed.
        idle_s: Seconds after which a silent visitor is forgotten.

    Attributes:
        on_forget: Called with the hash of everyone who was forgotten.
    """

    def __init__(self, upload_folder: Path, *, idle_s: float = IDLE_SECONDS) -> None:
        self.upload_folder = upload_folder.resolve()
        self.idle_s = idle_s
        # Gradio puts each file into a folder that is named by a digest of its content.
        self._in_folder = re.compile(re.escape(str(self.upload_folder)) + r"/(\w+/)?")
        self.on_forget: Callable[[str], None] = lambda _: None
        self._lock = threading.Lock()
        self._visitors: dict[str, Visitor] = {}

    def __len__(self) -> int:
        return len(self._visitors)

    def of(self, session_hash: str | None) -> Visitor:
        """The visitor of a tab, new on the first call; the idle ones are forgotten.

        Args:
            session_hash: `gradio.Request.session_hash`; None is a caller without a session, who
                gets a visitor that nobody keeps.
        """
        self._forget_idle()
        if session_hash is None:
            return Visitor()
        with self._lock:
            visitor = self._visitors.setdefault(session_hash, Visitor())
            visitor.seen = time.monotonic()
        return visitor

    def add_files(self, visitor: Visitor, paths: Iterable[str | Path]) -> None:
        """Note uploads, to be removed with their visitor.

        Raises:
            MediaAccessError: A path is not in the upload folder: it was made up, not uploaded.
        """
        for path in map(Path, paths):
            if not path.resolve().is_relative_to(self.upload_folder):
                raise MediaAccessError(f"{path.name} was not uploaded here; upload it first.")
            # Named by its content: sent again, the file is the same, and is not read again.
            with suppress(FileNotFoundError):  # made up; whoever reads it will say so
                os.utime(path.resolve(), (SAME_TIME, SAME_TIME))
            visitor.files.add(path.resolve())

    def without_folder(self, text: str) -> str:
        """A text in which uploads go by their names alone; visitors know no other."""
        return self._in_folder.sub("", text)

    def forget(self, session_hash: str | None) -> None:
        """Free a visitor: what is kept, and the files that no other visitor uses."""
        if session_hash is not None:
            self.on_forget(session_hash)
        with self._lock:
            visitor = self._visitors.pop(session_hash or "", None)
            if visitor is None:
                return
            for stop in visitor.stops.values():
                stop.request()
            visitor.things.clear()
            # Gradio names uploads by their content: two visitors with one picture share its file.
            shared = {path for other in self._visitors.values() for path in other.files}
            for path in visitor.files - shared:
                path.unlink(missing_ok=True)

    def reading(self, pieces: Iterator[T], most: int = MOST_READ) -> Iterator[T]:
        """A stream before which what was read for the longest silent visitors is freed.

        Args:
            pieces: Of an answer; taken on the thread of models, which alone uses what is read.
            most: Visitors for whom it is kept.
        """
        with self._lock:
            visitors = sorted(self._visitors.values(), key=lambda visitor: visitor.seen)
            kept = [thing for each in visitors[:-most] for thing in each.things.values()]
        for thing in kept:
            thing.forget()
        yield from pieces

    def leave(self, old: Assistant, new: Assistant) -> None:
        """Let go of a model that was unloaded; what was read with it is freed, turns stay.

        Args:
            old: The model.
            new: In its place, until a visitor asks again.
        """
        with self._lock:
            things = [thing for each in self._visitors.values() for thing in each.things.values()]
        for thing in things:
            conversation: Any = getattr(thing, "conversation", thing)
            is_busy = getattr(thing, "is_busy", False)  # then it is left at the next question
            if getattr(conversation, "assistant", None) is old and not is_busy:
                conversation.assistant = new
                thing.forget()

    def _forget_idle(self) -> None:
        oldest = time.monotonic() - self.idle_s
        for session_hash, visitor in list(self._visitors.items()):
            if visitor.seen < oldest:
                self.forget(session_hash)
