"""Merging reducers of pictures form the groups that their formulas say, one token at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import (
    axis_rows,
    features_for,
    full_layout,
    images,
    provenance_matrix,
    rates,
    videos,
)
from token_reduction import (
    ClsPruneMerge,
    DensityCluster,
    Merge,
    PruneMerge,
    TokenLayout,
    TokenShape,
    build,
)
from token_reduction.base import count_kept
from token_reduction.prune_merge import attention_received

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 99)

MERGERS = ["merge", "prune_merge", "cls_prune_merge", "density_cluster"]


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.cosine_similarity(left.float(), right.float(), dim=0))


def groups_of(layout: TokenLayout) -> list[tuple[int, list[int]]]:
    """(cell, source cells) of every token."""
    sources = [row.nonzero().flatten().tolist() for row in provenance_matrix(layout)]
    return list(zip(layout.cells.tolist(), sources, strict=True))


def slow_merge(rows: Tensor, num_kept: int) -> list[tuple[int, list[int]]]:
    """ToMe round by round: every group is its members, its place the one it grew around."""
    groups = [(i, [i]) for i in range(len(rows))]
    while len(groups) > num_kept:
        means = [rows[members].mean(0) for _, members in groups]
        proposals = []
        for a in range(0, len(groups), 2):
            scores = [(cosine(means[a], means[b]), -b) for b in range(1, len(groups), 2)]
            similarity, minus_b = max(scores)
            proposals.append((-similarity, a, -minus_b))
        accepted = sorted(proposals)[: min(len(groups) - num_kept, len(groups) // 2)]
        for _, a, b in accepted:
            groups[b][1].extend(groups[a][1])
        gone = {a for _, a, _ in accepted}
        groups = [group for i, group in enumerate(groups) if i not in gone]
    return [(cell, sorted(members)) for cell, members in groups]


def slow_join(rows: Tensor, kept: list[int]) -> list[tuple[int, list[int]]]:
    """Every other token joins the kept one most similar to it, the earliest of equals."""
    groups: dict[int, list[int]] = {k: [k] for k in kept}
    for i in set(range(len(rows))) - set(kept):
        groups[max(kept, key=lambda k: (cosine(rows[i], rows[k]), -k))].append(i)
    return [(k, sorted(members)) for k, members in groups.items()]


def slow_density_peaks(rows: Tensor, num_kept: int, num_neighbors: int) -> list[int]:
    """Centres by the formula, distances between rows of unit mean square over their width."""
    unit = (rows / rows.pow(2).mean(1, keepdim=True).sqrt()).double()
    every = range(len(rows))
    distance = [[float((unit[i] - unit[j]).pow(2).mean().sqrt()) for j in every] for i in every]
    rho = []
    for i in every:
        near = sorted(distance[i][j] for j in every if j != i)[:num_neighbors]
        rho.append(math.exp(-sum(d * d for d in near) / max(1, len(near))))
    score = []
    for i in every:
        denser = [distance[i][j] for j in every if (rho[j], -j) > (rho[i], -i)]
        score.append(rho[i] * min(denser, default=max(distance[i])))
    return sorted(sorted(every, key=lambda i: (-score[i], i))[:num_kept])


@few
@given(images, rates, seeds, st.booleans())
def test_merge_equals_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, ties: bool
) -> None:
    rows = features_for(shape, seed=seed)
    num_kept = count_kept(len(rows), rate)
    if ties and num_kept * 2 >= len(rows):  # one round: means of equal rows could round apart
        rows = axis_rows(len(rows), generator=torch.Generator().manual_seed(seed))
    _, layout = Merge(rate)(rows, full_layout(shape))
    assert groups_of(layout) == slow_merge(rows, num_kept)


@few
@given(images, rates, seeds, st.booleans())
def test_cls_prune_merge_equals_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, ties: bool
) -> None:
    rows = features_for(shape, seed=seed)
    attention = features_for(shape, dim=1, seed=seed, ties=ties)[:, 0].abs()
    layout = TokenLayout.full("image", shape.grid, cues={"attention": attention})
    reduced, merged = ClsPruneMerge(rate)(rows, layout)
    order = sorted(range(len(rows)), key=lambda i: (-float(attention[i]), i))
    expected = slow_join(rows, sorted(order[: count_kept(len(rows), rate)]))
    assert groups_of(merged) == expected
    for row, (_, members) in zip(reduced, expected, strict=True):
        if attention[members].sum() > 0:
            weights = attention[members, None] / attention[members].sum()
            torch.testing.assert_close(row, (rows[members] * weights).sum(0))


@few
@given(images, seeds)
def test_importance_without_attention_is_the_mean_softmax_of_the_rows(
    shape: TokenShape, seed: int
) -> None:
    rows = features_for(shape, seed=seed)
    unit = torch.nn.functional.normalize(rows, dim=1)
    scaled = rows / rows.pow(2).mean(1, keepdim=True).sqrt()
    expected = torch.softmax(scaled @ scaled.T / rows.shape[1] ** 0.5, dim=1).mean(0)
    torch.testing.assert_close(attention_received(unit[None])[0], expected)


@few
@given(images, rates, seeds)
def test_prune_merge_without_attention_keeps_what_receives_most(
    shape: TokenShape, rate: float, seed: int
) -> None:
    rows = features_for(shape, seed=seed)
    received = attention_received(torch.nn.functional.normalize(rows, dim=1)[None])[0]
    cue = TokenLayout.full("image", shape.grid, cues={"attention": received})
    with_cue, layout_with_cue = ClsPruneMerge(rate)(rows, cue)
    without, layout_without = PruneMerge(rate)(rows, full_layout(shape))
    assert torch.equal(with_cue, without)
    assert groups_of(layout_with_cue) == groups_of(layout_without)


@few
@given(images, rates, seeds, st.integers(1, 9))
def test_density_clusters_equal_the_slow_reference(
    shape: TokenShape, rate: float, seed: int, num_neighbors: int
) -> None:
    rows = features_for(shape, seed=seed)
    _, layout = DensityCluster(rate, num_neighbors)(rows, full_layout(shape))
    centres = slow_density_peaks(rows, count_kept(len(rows), rate), num_neighbors)
    assert groups_of(layout) == slow_join(rows, centres)


def test_density_clusters_of_separate_blobs_are_the_blobs() -> None:
    centres = torch.eye(3)[torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])]
    noise = 0.1 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    shape = TokenShape.full("image", (1, 3, 3))
    _, layout = DensityCluster(2 / 3, num_neighbors=2)(centres + noise, full_layout(shape))
    blobs = {tuple(members) for _, members in groups_of(layout)}
    assert blobs == {(0, 5, 6), (1, 4, 7), (2, 3, 8)}


@few
@given(videos, rates, seeds, st.sampled_from(MERGERS))
def test_every_step_of_a_video_is_merged_as_an_image_alone(
    shape: TokenShape, rate: float, seed: int, name: str
) -> None:
    features, reducer = features_for(shape, seed=seed), build(f"{name}({rate!r})")
    reduced, layout = reducer(features, full_layout(shape))
    _, h, w = shape.grid
    assert len(set(layout.tokens_per_step)) == 1
    picture = TokenShape.full("image", (1, h, w))
    alone = [reducer(step, full_layout(picture)) for step in features.split(h * w)]
    torch.testing.assert_close(reduced, torch.cat([rows for rows, _ in alone]))
    cells = torch.cat([one.cells + step * h * w for step, (_, one) in enumerate(alone)])
    assert torch.equal(layout.cells, cells)


@few
@given(images, rates, rates, seeds)
def test_means_of_means_weigh_every_source_cell_alike(
    shape: TokenShape, first: float, second: float, seed: int
) -> None:
    rows = features_for(shape, seed=seed)
    chain = build(f"merge({first!r})|density_cluster({second!r})")
    reduced, layout = chain(rows, full_layout(shape))
    expected = torch.stack([rows[members].mean(0) for _, members in groups_of(layout)])
    torch.testing.assert_close(reduced, expected)


@pytest.mark.parametrize("name", MERGERS)
def test_no_source_cell_is_lost_and_none_counted_twice(name: str) -> None:
    shape = TokenShape.full("video", (3, 5, 7))
    _, layout = build(f"{name}(0.8)")(features_for(shape), full_layout(shape))
    assert sorted(layout.source_cells.tolist()) == list(range(shape.num_tokens))


@pytest.mark.parametrize("name", MERGERS)
@pytest.mark.parametrize("numbers", [1, 50, 1000])
def test_groups_do_not_depend_on_the_size_of_the_comparison_chunks(
    name: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = TokenShape.full("video", (2, 5, 7))
    reducer, features = build(f"{name}(0.8)"), features_for(shape)
    _, whole = reducer(features, full_layout(shape))
    monkeypatch.setattr("token_reduction.similarity.MAX_SCORES", numbers)
    _, pieces = reducer(features, full_layout(shape))
    assert groups_of(whole) == groups_of(pieces)


@pytest.mark.parametrize("name", MERGERS)
def test_a_picture_of_equal_tokens_is_its_token(name: str) -> None:
    shape = TokenShape.full("image", (1, 4, 4))
    features = torch.tensor([2.0, 0.0, 0.0]).expand(16, 3)
    reduced, layout = build(f"{name}(0.75)")(features, full_layout(shape))
    torch.testing.assert_close(reduced, features[:4])
    assert sorted(layout.source_cells.tolist()) == list(range(16))


@pytest.mark.parametrize("name", MERGERS)
def test_sound_is_refused_because_it_would_lose_its_order(name: str) -> None:
    with pytest.raises(ValueError, match=f"Found audio; {name} joins .* Choose adjacent_merge"):
        build(f"{name}(0.5)").plan(TokenShape.full("audio", (9, 1, 1)))


@pytest.mark.parametrize("name", [*MERGERS, "divprune"])
def test_a_pruned_video_is_refused_and_a_pruned_image_is_not(name: str) -> None:
    reducer = build(f"{name}(0.5)")
    with pytest.raises(ValueError, match=f"Found 20 of 32 tokens; {name} needs a token in every"):
        reducer.plan(TokenShape(modality="video", grid=(2, 4, 4), num_tokens=20))
    pruned = TokenShape(modality="image", grid=(1, 4, 4), num_tokens=9)
    assert reducer.num_tokens(pruned) == 4


@pytest.mark.parametrize("bad", [-0.5, float("nan")])
def test_attention_that_is_no_probability_is_refused(bad: float) -> None:
    layout = TokenLayout.full("image", (1, 1, 2), cues={"attention": torch.tensor([bad, 1.0])})
    with pytest.raises(ValueError, match=f"Found values down to {bad:g} in the cue 'attention'"):
        ClsPruneMerge(0.5)(torch.ones(2, 3), layout)


def test_density_needs_a_neighbor() -> None:
    with pytest.raises(ValueError, match="Found num_neighbors 0 of density_cluster"):
        DensityCluster(0.5, 0)
