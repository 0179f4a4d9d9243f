"""Keyframes keep the first frame and the largest changes, and time stays true."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import features_for, full_layout, provenance, rates, videos
from token_reduction import Keyframes, Modality, TokenShape, build

few = settings(max_examples=40, deadline=None)


def slow_reference(features: Tensor, num_frames: int, num_kept: int) -> list[int]:
    """The formula at the top of the module, one number at a time."""
    frames = features.view(num_frames, -1)
    change = {}
    for f in range(1, num_frames):
        distance = [(a - b).abs() for a, b in zip(frames[f], frames[f - 1], strict=True)]
        change[f] = float(sum(distance)) / len(distance)
    by_change = sorted(change, key=lambda f: (-change[f], f))
    return sorted([0, *by_change[: num_kept - 1]])


@few
@given(videos, rates, st.integers(0, 99), st.booleans())
def test_keyframes_equal_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, ties: bool
) -> None:
    features, (num_frames, h, w) = features_for(shape, seed=seed, ties=ties), shape.grid
    reducer = Keyframes(rate)
    num_kept = reducer.plan(shape).grid[0]
    expected = slow_reference(features, num_frames, num_kept)
    reduced, layout = reducer(features, full_layout(shape))
    assert layout.shape == TokenShape.full("video", (len(expected), h, w))
    assert torch.equal(reduced, features.view(num_frames, h * w, -1)[expected].flatten(0, 1))
    frames = [cell // (h * w) for sources in provenance(layout) for cell in sources]
    assert frames == [frame for frame in expected for _ in range(h * w)]


@pytest.mark.parametrize(
    ("frames", "rate", "kept"), [(10, 0.5, 5), (5, 0.5, 2), (7, 0.3, 5), (1, 0.9, 1), (4, 0.99, 1)]
)
def test_a_half_is_rounded_down_and_one_frame_stays(frames: int, rate: float, kept: int) -> None:
    assert Keyframes(rate).plan(TokenShape.full("video", (frames, 2, 3))).grid == (kept, 2, 3)


def test_a_cut_and_a_flash_are_kept_and_repeats_are_not() -> None:
    # Frame 3 cuts to another scene; frame 5 flashes and frame 6 is as before.
    brightness = torch.tensor([10.0, 10, 11, 90, 90, 200, 90, 90])
    shape = TokenShape.full("video", (8, 1, 2))
    rows = brightness.repeat_interleave(2)[:, None]
    reduced, layout = Keyframes(0.5)(rows, full_layout(shape))
    assert reduced[::2, 0].tolist() == [10, 90, 200, 90]
    assert layout.time_spans == ((0.0, 1.5), (1.5, 2.5), (2.5, 3.0), (3.0, 4.0))


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_only_videos_have_frames(modality: Modality) -> None:
    with pytest.raises(ValueError, match=f"Found {modality}; keyframes takes only video"):
        build("keyframes(0.5)").plan(TokenShape.full(modality, (1, 1, 1)))


def test_frames_of_a_pruned_video_are_refused() -> None:
    pruned = TokenShape(modality="video", grid=(2, 2, 2), num_tokens=5)
    with pytest.raises(ValueError, match="Found 5 of 8 tokens; keyframes needs"):
        Keyframes(0.5).plan(pruned)
