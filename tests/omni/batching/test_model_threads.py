"""Threads that share the cores for what PyTorch computes."""

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
    with model_threads(workers) as pool:
        found = [pool.submit(torch.get_num_threads) for _ in range(4 * workers)]
        assert {future.result() for future in found} == {max(cores // workers, 1)}
        assert torch.get_num_threads() == cores


@pytest.mark.parametrize(("num_bytes", "workers"), [(SMALL_BYTES - 1, 2), (SMALL_BYTES, 1)])
def test_only_a_small_model_answers_twice_at_once(cores, monkeypatch, num_bytes, workers):
    model = tiny_omni.assistant().model
    monkeypatch.setattr(model, "get_memory_footprint", lambda: num_bytes)
    assert default_workers(model) == workers
    torch.set_num_threads(1)
    assert default_workers(model) == 1
