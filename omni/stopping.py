"""Work that another thread may stop: between windows of media, pieces of a prompt, tokens.

    stop = Stop()
    with stoppable(stop):              # in the thread that works
        assistant.ask("What happens?", "long.mp4")
    stop.request()                     # in any other: the call raises StoppedError

Nothing is interrupted in the middle of a layer, so what was being worked on stays as whole as after
any other error.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from omni.errors import StoppedError


class Stop:
    """A wish to stop, for one piece of work; any thread may express it, once and for all."""

    def __init__(self) -> None:
        self._wish = threading.Event()

    def request(self) -> None:
        """Let the work end at its next check."""
        self._wish.set()

    @property
    def is_requested(self) -> bool:
        """Whether the work is to end."""
        return self._wish.is_set()


_CURRENT: ContextVar[Stop | None] = ContextVar("stop", default=None)


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Let `stop` end the work inside the block.

    A stream works when a piece is taken, so the block belongs around that, not around its making.

    Args:
        stop: Asked again and again by this thread.
    """
    token = _CURRENT.set(stop)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def check_stop() -> None:
    """Called by work between two of its steps.

    Raises:
        StoppedError: The work is to end.
    """
    stop = _CURRENT.get()
    if stop is not None and stop.is_requested:
        raise StoppedError("Stopped before the answer was complete.")
