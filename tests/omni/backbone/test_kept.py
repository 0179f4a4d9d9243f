"""Kept tensors are made once, and never while they stand for others."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from omni.backbone.kept import keep_tensors
from omni.backbone.layers import RMSNorm


def test_tensors_are_made_once_for_the_same_arguments():
    made = []

    @keep_tensors
    def make(count, start=0):
        made.append((count, start))
        return (torch.arange(start, start + count),)

    for _ in range(3):
        assert make(3)[0].tolist() == [0, 1, 2]
        assert make(2, start=5)[0].tolist() == [5, 6]
    assert made == [(3, 0), (2, 5)]


def test_a_layer_that_was_traced_goes_on_with_real_tensors():
    eps = 0.0123  # which nobody else keeps
    with FakeTensorMode(), torch.no_grad():
        RMSNorm(8, eps=eps)(torch.ones(1, 8))
    with torch.no_grad():
        found = RMSNorm(8, eps=eps)(torch.full((1, 8), 2.0))
    torch.testing.assert_close(found, torch.full((1, 8), 2 / (4 + eps) ** 0.5))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_inference_made_serves_training(mode):
    norm = RMSNorm(8, eps=0.0321)
    with mode():
        norm(torch.ones(1, 8))
    norm(torch.ones(1, 8, requires_grad=True)).sum().backward()
    assert norm.weight.grad is not None
