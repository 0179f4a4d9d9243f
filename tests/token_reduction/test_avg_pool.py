"""Average pooling is that of torch, with the smaller windows at the border counted as they are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layouts import features_for, full_layout, images, provenance, sounds, videos
from token_reduction import AvgPool, TokenShape

few = settings(max_examples=40, deadline=None)


@few
@given(images | videos, st.integers(1, 7))
def test_pictures_are_pooled_as_torch_does(shape: TokenShape, side: int) -> None:
    features = features_for(shape)
    reduced, layout = AvgPool(side)(features, full_layout(shape))
    channels = features.view(*shape.grid, -1).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(channels, side, ceil_mode=True)
    expected = pooled.permute(0, 2, 3, 1)
    assert layout.shape.grid == tuple(expected.shape[:3])
    torch.testing.assert_close(reduced, expected.flatten(0, 2))


@few
@given(sounds, st.integers(1, 9))
def test_sound_is_pooled_over_time(shape: TokenShape, side: int) -> None:
    features = features_for(shape)
    reduced, layout = AvgPool(side)(features, full_layout(shape))
    expected = F.avg_pool1d(features.T[None], side, ceil_mode=True)[0].T
    torch.testing.assert_close(reduced, expected)
    assert layout.shape.grid == (len(expected), 1, 1)


def test_a_pooled_token_spans_the_time_of_its_steps() -> None:
    shape = TokenShape.full("audio", (5, 1, 1))
    _, layout = AvgPool(2)(features_for(shape), full_layout(shape))
    assert layout.time_spans == ((0.0, 1.0), (1.0, 2.0), (2.0, 2.5))
    assert provenance(layout) == [{0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}, {4: 1.0}]


def test_a_pruned_item_is_refused() -> None:
    pruned = TokenShape(modality="image", grid=(1, 4, 4), num_tokens=9)
    with pytest.raises(ValueError, match="Found 9 of 16 tokens; avg_pool needs"):
        AvgPool(2).plan(pruned)


def test_a_window_needs_a_cell() -> None:
    with pytest.raises(ValueError, match="Found avg_pool side 0; expected at least 1"):
        AvgPool(0)
