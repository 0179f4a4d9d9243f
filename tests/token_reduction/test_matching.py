"""Matching chooses the pairs that the paper's three steps choose, and merges them by size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import axis_rows
from token_reduction.matching import Match, bipartite_match

few = settings(max_examples=30, deadline=None)


def slow_reference(keys: Tensor, num_merged: int, num_protected: int) -> list[tuple[int, int]]:
    """(source, target) pairs of one item, the most similar first."""
    proposals = []
    a_tokens = range(num_protected, len(keys), 2)
    b_tokens = range(num_protected + 1, len(keys), 2)
    for a in a_tokens if b_tokens else []:
        scores = {b: float(torch.cosine_similarity(keys[a], keys[b], dim=0)) for b in b_tokens}
        partner = max(scores, key=lambda b: (scores[b], -b))
        proposals.append((-scores[partner], a, partner))
    return [(a, b) for _, a, b in sorted(proposals)[:num_merged]]


@st.composite
def matches(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Keys of some items, and how many tokens to merge and to protect."""
    items, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    num_protected = draw(st.integers(0, tokens))
    num_merged = draw(st.integers(0, (tokens - num_protected) // 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):  # cosines of -1, 0 and 1 exactly, most of them tied
        keys = axis_rows(items * tokens, generator=generator).view(items, tokens, -1)
    else:
        keys = torch.randn(items, tokens, 6, generator=generator)
    return keys, num_merged, num_protected


@few
@given(matches())
def test_a_match_equals_the_slow_reference(case: tuple[Tensor, int, int]) -> None:
    keys, num_merged, num_protected = case
    match = bipartite_match(keys, num_merged, num_protected)
    for item, rows in enumerate(keys):
        pairs = slow_reference(rows, num_merged, num_protected)
        found = zip(match.source[item].tolist(), match.target[item].tolist(), strict=True)
        assert list(found) == pairs
        left = set(range(len(rows))) - {source for source, _ in pairs}
        assert match.kept[item].tolist() == sorted(left)


@few
@given(matches(), st.integers(0, 9))
def test_merging_is_the_mean_weighted_by_size(case: tuple[Tensor, int, int], seed: int) -> None:
    keys, num_merged, num_protected = case
    match = bipartite_match(keys, num_merged, num_protected)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*keys.shape[:2], 3, generator=generator)
    sizes = torch.randint(1, 9, keys.shape[:2], generator=generator).float()
    merged, merged_sizes = match.merge(values, sizes)
    for item in range(len(keys)):
        members: dict[int, list[int]] = {kept: [kept] for kept in match.kept[item].tolist()}
        pairs = zip(match.source[item].tolist(), match.target[item].tolist(), strict=True)
        for source, target in pairs:
            members[target].append(source)
        weights = [sizes[item, group, None] for group in members.values()]
        sums = [
            (values[item, m] * w).sum(0) for m, w in zip(members.values(), weights, strict=True)
        ]
        total = torch.stack([w.sum() for w in weights])
        assert torch.equal(merged_sizes[item], total)
        torch.testing.assert_close(merged[item], torch.stack(sums) / total[:, None])
        alone = [row for row, group in enumerate(members.values()) if len(group) == 1]
        assert torch.equal(merged[item, alone], values[item, match.kept[item, alone]])


@few
@given(matches())
def test_sizes_add_up_to_the_tokens_that_went_in(case: tuple[Tensor, int, int]) -> None:
    keys, num_merged, num_protected = case
    match = bipartite_match(keys, num_merged, num_protected)
    _, sizes = match.merge(keys, torch.ones(keys.shape[:2]))
    assert sizes.sum(1).tolist() == [keys.shape[1]] * len(keys)


@few
@given(matches())
def test_an_item_alone_matches_as_it_does_among_others(case: tuple[Tensor, int, int]) -> None:
    keys, num_merged, num_protected = case
    together = bipartite_match(keys, num_merged, num_protected)
    for item in range(len(keys)):
        alone = bipartite_match(keys[item : item + 1], num_merged, num_protected)
        assert torch.equal(alone.kept[0], together.kept[item])
        assert torch.equal(alone.place[0], together.place[item])


def test_gradients_flow_through_the_merge_and_not_through_the_match() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]], requires_grad=True)
    match = bipartite_match(keys, num_merged=1)
    merged, _ = match.merge(keys, torch.tensor([[3.0, 1.0, 1.0, 1.0]]))
    merged.sum().backward()
    assert (match.source.tolist(), match.target.tolist()) == ([[0]], [[1]])
    assert keys.grad is not None
    assert keys.grad[0, :, 0].tolist() == [0.75, 0.25, 1.0, 1.0]


def test_the_match_does_not_depend_on_the_size_of_the_comparison_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    whole = bipartite_match(keys, 15, 3)
    for numbers in (1, 100, 700):
        monkeypatch.setattr("token_reduction.similarity.MAX_SCORES", numbers)
        assert torch.equal(bipartite_match(keys, 15, 3).place, whole.place)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_matches_as_its_float32_copy_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    keys = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    match: Match = bipartite_match(keys, 12)
    assert torch.equal(match.place, bipartite_match(keys.float(), 12).place)
    merged, sizes = match.merge(keys, torch.ones(2, 30))
    assert (merged.dtype, sizes.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("num_merged", "num_protected", "message"),
    [
        (4, 0, r"Found 4 token\(s\) to merge of 7, 0 of them protected; expected between 0 and 3"),
        (3, 2, r"Found 3 token\(s\) to merge of 7, 2 of them protected; expected between 0 and 2"),
        (-1, 0, r"Found -1 token\(s\) to merge"),
        (0, 8, r"Found 8 protected token\(s\) of 7; expected between 0 and 7"),
    ],
)
def test_more_than_can_merge_is_refused(num_merged: int, num_protected: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bipartite_match(torch.zeros(1, 7, 2), num_merged, num_protected)
