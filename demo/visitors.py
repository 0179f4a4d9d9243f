"""Who is visiting, and what is kept for them: one `Visitor` a browser tab, freed when it goes.

Nothing of a visitor is kept anywhere else, so that forgetting one is one call, and two never meet.
"""

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.models import Choice
from omni.errors import MediaAccessError

IDLE_SECONDS = 2 * 3600.0  # a tab that says nothing for so long is taken for closed


@dataclass(slots=True, kw_only=True, eq=False)
class Visitor:
    """What is kept for one browser tab.

    Attributes:
        things: Whatever the tabs of the page keep, by name: `Visitor.thing`.
        files: Uploaded files that were used, removed with the visitor.
        choice: Which model answers them; None is the default.
        seen: When something was asked last, on the monotonic clock.
    """

    things: dict[str, Any] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    choice: Choice | None = None
    seen: float = field(default_factory=time.monotonic)


class Visitors:
    """All visitors, by the hash that gradio gives each browser tab. Any thread may call.

    Args:
        upload_folder: Where uploads lie; no file outside it is ever removed.
        idle_s: Seconds after which a silent visitor is forgotten.
    """

    def __init__(self, upload_folder: Path, *, idle_s: float = IDLE_SECONDS) -> None:
        self.upload_folder = upload_folder.resolve()
        self.idle_s = idle_s
        # Gradio puts each file into a folder that is named by a digest of its content.
        self._in_folder = re.compile(re.escape(str(self.upload_folder)) + r"/(\w+/)?")
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
            visitor.files.add(path.resolve())

    def without_folder(self, text: str) -> str:
        """A text in which uploads go by their names alone; visitors know no other."""
        return self._in_folder.sub("", text)

    def forget(self, session_hash: str | None) -> None:
        """Free a visitor: what is kept, and the files that no other visitor uses."""
        with self._lock:
            visitor = self._visitors.pop(session_hash or "", None)
            if visitor is None:
                return
            visitor.things.clear()
            # Gradio names uploads by their content: two visitors with one picture share its file.
            shared = {path for other in self._visitors.values() for path in other.files}
            for path in visitor.files - shared:
                path.unlink(missing_ok=True)

    def _forget_idle(self) -> None:
        oldest = time.monotonic() - self.idle_s
        for session_hash, visitor in list(self._visitors.items()):
            if visitor.seen < oldest:
                self.forget(session_hash)
