"""What is left when a visitor has gone: gradio's copy of the page, and memory that nobody uses.

Gradio keeps the page's components for each session, about 1,000 objects, until 10,000 sessions are
exceeded. Freed memory stays with the C library unless it is asked for.
"""

import gc
import threading
from typing import Any

from omni.memory import release_heap

DELAY_S = 3.0  # after the last visitor who left: those who leave together are swept up together
MOST_SESSIONS = 500  # of gradio at a time; the one that was silent longest is dropped


class Housekeeper:
    """Sweeps up some seconds after visitors have gone. Any thread may call.

    Args:
        app: Gradio's blocks, once they are launched.
        delay_s: Seconds from a visitor's leaving to the sweep.
    """

    def __init__(self, app: Any, *, delay_s: float = DELAY_S) -> None:
        self.app = app
        self.delay_s = delay_s
        self._lock = threading.Lock()
        self._gone: set[str] = set()
        self._timer: threading.Timer | None = None

    def note(self, session_hash: str) -> None:
        """A visitor has gone; not swept up at once, since gradio is still about to note it."""
        with self._lock:
            self._gone.add(session_hash)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self.delay_s, self.sweep)
            self._timer.daemon = True
            self._timer.start()

    def sweep(self) -> None:
        """Free what gradio keeps of those who have gone, and give memory back to the system."""
        with self._lock:
            gone, self._gone = self._gone, set()
        states, queue = self.app.state_holder, self.app._queue
        for session_hash in gone:
            states.session_data.pop(session_hash, None)
            states.time_last_used.pop(session_hash, None)
            queue.pending_messages_per_session.pop(session_hash, None)
            if not queue.pending_event_ids_session.get(session_hash):
                queue.pending_event_ids_session.pop(session_hash, None)
        gc.collect()
        release_heap()
