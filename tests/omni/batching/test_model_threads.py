"""Threads that share the cores for what PyTorch computes."""

import threading

import pytest
import torch

from omni.batching.model_threads import SMALL_BYTES, default_workers, model_threads
from tests.support import tiny_omni


@pytest.fixture
def cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_each_thread_has_its_share_and_the_caller_keeps_all(cores, workers):
    together = threading.Barrier(workers, timeout=60)

    def look() -> tuple[int, int]:
        together.wait()  # each job in a thread of its own
        return threading.get_ident(), torch.get_num_threads()

    with model_threads(workers) as pool:
        found = [future.result() for future in [pool.submit(look) for _ in range(workers)]]
        assert {cores for _, cores in found} == {max(cores // workers, 1)}
        assert len({thread for thread, _ in found}) == workers
        assert torch.get_num_threads() == cores


def test_where_no_thread_can_be_had_an_error_says_so_and_nothing_waits(cores, monkeypatch):
    start, started = threading.Thread.start, []

    def start_one(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start"):
        model_threads(2)
    [thread] = started
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.parametrize(("num_bytes", "workers"), [(SMALL_BYTES - 1, 2), (SMALL_BYTES, 1)])
def test_only_a_small_model_answers_twice_at_once(cores, monkeypatch, num_bytes, workers):
    model = tiny_omni.assistant().model
    monkeypatch.setattr(model, "get_memory_footprint", lambda: num_bytes)
    assert default_workers(model) == workers
    torch.set_num_threads(1)
    assert default_workers(model) == 1
