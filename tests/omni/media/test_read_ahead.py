"""A stream that is read ahead gives the same pieces, and stops where it should."""

import threading

import numpy as np
import pytest

from omni.media.read_ahead import ReadAhead


def pieces(count, made=None, fails_at=None):
    for number in range(count):
        if number == fails_at:
            raise ValueError("damaged")
        if made is not None:
            made.append(number)
        yield np.full(10, number, dtype=np.uint8)


@pytest.mark.parametrize("max_bytes", [1, 25, 1_000])
def test_it_gives_what_the_stream_gives(max_bytes):
    found = [int(piece[0]) for piece in ReadAhead(pieces(12), max_bytes)]
    assert found == list(range(12))


def test_an_error_comes_after_what_was_before_it():
    stream = ReadAhead(pieces(5, fails_at=3))
    assert [int(next(stream)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(stream)


@pytest.mark.parametrize("max_bytes", [10, 35])
def test_no_more_waits_than_may(max_bytes):
    stopped = threading.Event()
    made: list[int] = []

    def watched():
        yield from pieces(30, made)
        stopped.set()

    stream = ReadAhead(watched(), max_bytes)
    for taken in range(1, 21):
        next(stream)
        most = -(-max_bytes // 10)  # that wait; one more may stand at the door
        assert len(made) <= taken + most + 1
    stream.close()
    stream.thread.join(timeout=10)
    assert not stream.thread.is_alive()
    assert not stopped.is_set()
    assert len(made) < 30
