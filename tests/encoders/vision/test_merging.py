"""Merging inside the tower: exact where patches are equal, blind to neighbours, off at rate 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.vision.merging import TokenMerging, merge_counts, run_merging_blocks
from encoders.vision.radio import RadioTower
from tests.encoders.vision.test_radio import build_config, rows_for
from token_reduction.matching import bipartite_match

REORDERED_SUMS = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def tower() -> RadioTower:
    torch.manual_seed(0)
    return RadioTower(build_config(num_hidden_layers=3)).eval().requires_grad_(False)


def merging(rate: float) -> TokenMerging:
    return TokenMerging(match=bipartite_match, rate=rate)


@given(st.integers(1, 400), st.integers(1, 40), st.floats(0, 0.99))
def test_counts_are_exact_where_no_block_loses_more_than_half(
    patches: int, blocks: int, rate: float
) -> None:
    counts = merge_counts(patches, blocks, rate)
    assert len(counts) == blocks
    left, halved = patches, False
    for count in counts:
        assert 0 <= count <= left // 2
        halved |= count == left // 2
        left -= count
    assert halved or left == patches - int(patches * rate)


def test_rate_zero_is_the_plain_tower(tower: RadioTower) -> None:
    rows, grids = rows_for([(4, 6), (2, 8)]), torch.tensor([(4, 6), (2, 8)])
    merged = tower.encode_images(rows, grids, merging(0.0))
    torch.testing.assert_close(merged, tower.encode_images(rows, grids), **REORDERED_SUMS)


def test_merging_equal_tokens_changes_nothing(tower: RadioTower) -> None:
    """A token that counts twice is as good as two equal tokens: the law behind `log s`."""
    torch.manual_seed(1)
    summary = tower.config.num_summary_tokens
    half = torch.randn(3, 6, 16)
    twins = half.repeat_interleave(2, dim=1)  # neighbours are equal: one in A, one in B
    hidden = torch.cat([torch.randn(3, summary, 16), twins], dim=1)
    expected = tower.encoder(hidden).last_hidden_state
    found = run_merging_blocks(tower.encoder.layer, hidden, merging(0.5), summary)
    torch.testing.assert_close(found, expected, **REORDERED_SUMS)


def test_merged_patches_share_their_row_and_as_many_differ_as_planned(tower: RadioTower) -> None:
    rows = tower.encode_images(rows_for([(4, 6)]), torch.tensor([(4, 6)]), merging(0.5))
    assert len(torch.unique(rows, dim=0)) == 12


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 0.9), st.integers(0, 2))
def test_items_in_one_pass_are_as_if_alone(rate: float, place: int) -> None:
    torch.manual_seed(0)
    tower = RadioTower(build_config()).eval().requires_grad_(False)
    grids = [(4, 6), (2, 8), (4, 6)]
    rows = rows_for(grids)
    together = tower.encode_images(rows, torch.tensor(grids), merging(rate))
    start = sum(h * w for h, w in grids[:place])
    own = slice(start, start + grids[place][0] * grids[place][1])
    alone = tower.encode_images(rows[own], torch.tensor([grids[place]]), merging(rate))
    torch.testing.assert_close(together[own], alone, **REORDERED_SUMS)


def test_video_merges_within_each_tubelet(tower: RadioTower) -> None:
    rows = rows_for([(2, 4)] * 3, width=24)
    found = tower.encode_video(rows, (2, 4), merging(0.5))
    for step in range(3):
        own = slice(8 * step, 8 * step + 8)
        alone = tower.encode_video(rows[own], (2, 4), merging(0.5))
        torch.testing.assert_close(found[own], alone, **REORDERED_SUMS)
        assert len(torch.unique(found[own], dim=0)) == 4


def test_every_patch_gets_a_gradient(tower: RadioTower) -> None:
    rows = rows_for([(4, 6)]).requires_grad_()
    out = tower.encode_images(rows, torch.tensor([(4, 6)]), merging(0.7))
    (out * torch.randn_like(out)).sum().backward()
    assert rows.grad is not None
    assert bool((rows.grad.abs().sum(1) > 0).all())
