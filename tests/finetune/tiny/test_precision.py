"""Training multiplies in the format that is faster on the machine it runs on."""

import pytest
import torch

from finetune.tiny import precision
from finetune.tiny.train_joint import JointTraining
from finetune.tiny.train_vision import VisionTraining


@pytest.fixture(autouse=True)
def measured_anew():
    precision.bfloat16_is_faster.cache_clear()
    yield
    precision.bfloat16_is_faster.cache_clear()


@pytest.mark.parametrize(("slow", "expected"), [(torch.float32, True), (torch.bfloat16, False)])
def test_the_faster_format_is_chosen(monkeypatch, slow, expected):
    now = 0.0

    def linear(rows, weight):
        nonlocal now
        now += 2.0 if rows.dtype == slow else 1.0
        return rows

    monkeypatch.setattr(precision.F, "linear", linear)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    assert precision.bfloat16_is_faster() is expected
    assert VisionTraining(steps=1).bfloat16 is expected
    assert JointTraining(steps=1).bfloat16 is expected
