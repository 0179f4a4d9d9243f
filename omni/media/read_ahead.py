"""Decoding goes on while whoever asked for it is busy with what came before."""

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np

MAX_BYTES = 64 * 2**20  # of pieces that wait: some frames of 4K, a hundred of a small clip


class ReadAhead(Iterator[np.ndarray]):
    """The pieces of a stream, made in a thread of its own until enough of them wait.

    Args:
        pieces: Frames or blocks of sound; used by that thread alone.
        max_bytes: Of pieces that wait; there is always room for one.
    """

    def __init__(self, pieces: Iterator[np.ndarray], max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.waiting: deque[np.ndarray] = deque()
        self.held = 0
        self.is_at_end = False
        self.error: BaseException | None = None
        self.is_closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._fill, args=(pieces,), daemon=True)
        self.thread.start()

    def __next__(self) -> np.ndarray:
        """The next piece.

        Raises:
            Exception: What the stream raises, after the pieces before it.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.is_at_end)
            if self.waiting:
                piece = self.waiting.popleft()
                self.held -= piece.nbytes
                self.changed.notify_all()
                return piece
            if self.error is not None:
                raise self.error
        raise StopIteration

    def close(self) -> None:
        """Give up what is left; the thread ends after the piece it is at."""
        with self.changed:
            self.is_closed = True
            self.waiting.clear()
            self.changed.notify_all()

    def _fill(self, pieces: Iterator[np.ndarray]) -> None:
        try:
            for piece in pieces:
                with self.changed:
                    self.changed.wait_for(self._has_room)
                    if self.is_closed:
                        return
                    self.waiting.append(piece)
                    self.held += piece.nbytes
                    self.changed.notify_all()
        except BaseException as error:
            self.error = error
        finally:
            with self.changed:
                self.is_at_end = True
                self.changed.notify_all()

    def _has_room(self) -> bool:
        return self.is_closed or self.held < self.max_bytes
