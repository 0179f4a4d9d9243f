"""EVS keeps what the formula says, on any grid."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import features_for, full_layout, rates, videos
from token_reduction import Evs, Grid, TokenLayout, TokenShape, build, evs_keep_mask, evs_num_kept

few = settings(max_examples=40, deadline=None)


def slow_reference(features: Tensor, grid: Grid, rate: float, floor: int = 0) -> list[int]:
    """The formula at the top of the module, one token at a time."""
    steps, height, width = grid
    per_step = height * width
    change = []
    for t in range(steps):
        for n in range(per_step):
            if t == 0:
                change.append(255.0)
                continue
            now = features[t * per_step + n][None].float()
            before = features[(t - 1) * per_step + n][None].float()
            change.append(float(1 - F.cosine_similarity(now, before, dim=-1)))
    at_least = per_step + (steps - 1) * min(floor, per_step)
    num_kept = max(at_least, int(steps * per_step * (1 - rate)))
    by_change = sorted(range(len(change)), key=lambda i: (-change[i], i))
    kept: list[int] = []
    for t in range(steps):
        kept += [i for i in by_change if i // per_step == t][:floor]
    kept += [i for i in by_change if i not in kept][: num_kept - len(kept)]
    return sorted(kept)


@few
@given(videos, rates, st.integers(0, 99), st.booleans())
def test_evs_equals_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, ties: bool
) -> None:
    features = features_for(shape, seed=seed, ties=ties)
    expected = slow_reference(features, shape.grid, rate)
    reduced, layout = Evs(rate)(features, full_layout(shape))
    assert layout.cells.tolist() == expected
    assert torch.equal(reduced, features[expected])
    assert evs_keep_mask(features, shape.grid, rate).nonzero().flatten().tolist() == expected


@few
@given(videos, rates, st.integers(0, 40), st.integers(0, 99), st.booleans())
def test_evs_with_a_floor_equals_the_slow_reference(
    shape: TokenShape, rate: float, floor: int, seed: int, ties: bool
) -> None:
    features = features_for(shape, seed=seed, ties=ties)
    expected = slow_reference(features, shape.grid, rate, floor)
    reduced, layout = Evs(rate, floor)(features, full_layout(shape))
    assert layout.cells.tolist() == expected
    assert torch.equal(reduced, features[expected])


@few
@given(videos, rates, st.integers(0, 40), st.integers(0, 99))
def test_every_step_keeps_its_floor(shape: TokenShape, rate: float, floor: int, seed: int) -> None:
    reducer = Evs(rate, floor)
    _, layout = reducer(features_for(shape, seed=seed), full_layout(shape))
    per_step = shape.grid[1] * shape.grid[2]
    assert layout.tokens_per_step[0] == per_step
    assert min(layout.tokens_per_step) >= min(floor, per_step)
    assert layout.shape.num_tokens >= Evs(rate).num_tokens(shape)


def test_a_late_event_of_a_short_clip_survives_with_a_floor() -> None:
    features = torch.ones(3, 16, 5)
    features[2, 9] = -1.0  # one cell changes in the last of three steps
    shape = TokenShape.full("video", (3, 4, 4))
    _, plain = Evs(0.7)(features.flatten(0, 1), full_layout(shape))
    _, floored = Evs(0.7, floor=1)(features.flatten(0, 1), full_layout(shape))
    assert plain.tokens_per_step == (16, 0, 0)
    assert floored.tokens_per_step == (16, 1, 1)
    assert floored.cells[-1] == 2 * 16 + 9


def test_a_floor_costs_nothing_where_every_step_has_it_already() -> None:
    shape = TokenShape.full("video", (64, 16, 16))
    assert Evs(0.7, 8).num_tokens(shape) == Evs(0.7).num_tokens(shape) == 4915
    assert Evs(0.9, 32).num_tokens(shape) == 256 + 63 * 32


def test_a_floor_needs_every_token() -> None:
    pruned = TokenShape(modality="video", grid=(3, 2, 2), num_tokens=9)
    with pytest.raises(ValueError, match="Found 9 of 12 tokens; evs with a floor needs a token"):
        Evs(0.5, floor=1).plan(pruned)
    assert Evs(0.5).num_tokens(pruned) == 4


def test_a_floor_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Found floor -1; expected the number of tokens"):
        Evs(0.5, floor=-1)


@few
@given(videos, rates, st.integers(0, 99))
def test_half_precision_selects_as_its_float32_copy_does(
    shape: TokenShape, rate: float, seed: int
) -> None:
    features = features_for(shape, seed=seed).bfloat16()
    mask = evs_keep_mask(features, shape.grid, rate)
    assert torch.equal(mask, evs_keep_mask(features.float(), shape.grid, rate))


@few
@given(videos, rates, st.integers(0, 99))
def test_the_first_step_is_always_complete(shape: TokenShape, rate: float, seed: int) -> None:
    _, layout = Evs(rate)(features_for(shape, seed=seed), full_layout(shape))
    assert layout.tokens_per_step[0] == shape.grid[1] * shape.grid[2]


@few
@given(videos, st.integers(0, 99))
def test_rate_zero_is_identity(shape: TokenShape, seed: int) -> None:
    features = features_for(shape, seed=seed)
    reduced, layout = Evs(0.0)(features, full_layout(shape))
    assert torch.equal(reduced, features)
    assert layout.cells.tolist() == list(range(shape.num_tokens))


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, 256), (2, 256), (3, 256), (4, 307), (8, 614), (64, 4915)]
)
def test_the_released_rate_keeps_the_published_counts(steps: int, kept: int) -> None:
    assert Evs(0.7).num_tokens(TokenShape.full("video", (steps, 16, 16))) == kept


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 64_512), (0.5, 32_256), (0.7, 19_353)])
def test_a_wide_video_of_512_frames_keeps_the_published_counts(rate: float, kept: int) -> None:
    chain = build(f"tubelet(2)|pixel_shuffle(0.5)|evs({rate})")
    assert chain.num_tokens(TokenShape.full("video", (512, 24, 42))) == kept


def test_a_late_change_is_kept_and_a_still_scene_is_not() -> None:
    features = torch.ones(4, 3, 5)
    features[2, 1] = -1.0  # one cell changes at step 2 and back at step 3
    _, layout = Evs(0.6)(features.flatten(0, 1), full_layout(TokenShape.full("video", (4, 1, 3))))
    assert layout.cells.tolist() == [0, 1, 2, 7]
    assert layout.tokens_per_step == (3, 0, 1, 0)


def test_long_inputs_do_not_depend_on_the_size_of_the_comparison_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = features_for(TokenShape.full("video", (9, 5, 7)))
    expected = evs_keep_mask(features, (9, 5, 7), 0.6)
    for rows in (1, 7, 100):
        monkeypatch.setattr("token_reduction.evs.CHUNK_ROWS", rows)
        assert torch.equal(evs_keep_mask(features, (9, 5, 7), 0.6), expected)


def test_after_pruning_a_token_is_compared_with_the_latest_one_left_at_its_place() -> None:
    # Place 0 keeps steps 0 and 2 (equal, so nothing new); place 1 keeps step 1 only (new).
    layout = full_layout(TokenShape.full("video", (3, 1, 2))).select(torch.tensor([0, 3, 4]))
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    _, pruned = Evs(0.3)(features, layout)
    assert pruned.cells.tolist() == [0, 3]


def test_an_image_has_one_step_and_keeps_every_token() -> None:
    assert Evs(0.9).num_tokens(TokenShape.full("image", (1, 4, 6))) == 24


def test_audio_is_refused() -> None:
    layout = TokenLayout.full("audio", (8, 1, 1))
    with pytest.raises(ValueError, match="Found audio; evs compares the same place"):
        Evs(0.5)(torch.zeros(8, 2), layout)


def test_a_mask_for_the_wrong_grid_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Found 5 feature row\(s\) for grid \(2, 2, 2\); expected 8"
    ):
        evs_keep_mask(torch.zeros(5, 3), (2, 2, 2), 0.5)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["evs", "uniform", "random"])
def test_a_rate_outside_its_range_is_refused(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=rf"Found rate {rate}; expected the fraction"):
        build(f"{name}({rate})")


def test_the_count_needs_no_data() -> None:
    assert evs_num_kept(6 * 252, (6, 12, 21), 0.5) == 756
