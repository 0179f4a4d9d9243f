"""The query resampler: counts, the formula head by head, any K from one set of weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layouts import features_for, full_layout, provenance_matrix, shapes
from token_reduction import QueryResampler, Reducer, Resampler, TokenShape, build

few = settings(max_examples=40, deadline=None)


def queries(seed: int = 0, num_queries: int = 6) -> QueryResampler:
    """Queries as after training: the correction is not zero."""
    torch.manual_seed(seed)
    made = QueryResampler(dim=5, num_queries=num_queries, hidden=8, num_heads=2)
    torch.nn.init.normal_(made.out_proj.weight)
    return made.eval()


def bound(num_queries: int, weights: QueryResampler | None = None) -> Reducer:
    return build(f"resampler({num_queries})").bind({"resampler": weights or queries()})


def slow(made: QueryResampler, x: torch.Tensor, p: torch.Tensor, num_kept: int) -> torch.Tensor:
    """The formula, one query, one head and one token at a time."""
    rows = []
    order = sorted(range(num_kept), key=lambda k: (made.places[k, 0].item(), k))
    for k in order:
        u, seen, read, shares = made.queries[k], made.norm(x), [], []
        for m in range(made.num_heads):
            part = slice(4 * m, 4 * m + 4)
            q = made.q_proj(made.query_norm(u))[part]
            logits = []
            for i in range(len(x)):
                key = made.k_proj(seen[i] + made.position_proj(p[i]))[part]
                far = (p[i] - made.places[k]).square().sum()
                logits.append(q @ key / 2 - made.log_sharpness.exp() * far)
            weights = torch.stack(logits).softmax(0)
            shares.append(weights)
            read.append(weights @ made.v_proj(seen)[:, part])
        z = u + made.o_proj(torch.cat(read))
        z = z + made.mlp(made.mlp_norm(z))
        rows.append(torch.stack(shares).mean(0) @ x + made.out_proj(z))
    return torch.stack(rows)


@pytest.mark.parametrize("num_kept", [1, 3, 6])
def test_it_computes_the_formula(num_kept: int) -> None:
    shape = TokenShape.full("image", (1, 3, 4))
    features, weights = features_for(shape), queries()
    rows, columns = torch.arange(3), torch.arange(4)
    down = ((2 * rows + 1) / 3 - 1).repeat_interleave(4)
    right = ((2 * columns + 1) / 4 - 1).repeat(3)
    expected = slow(weights, features, torch.stack([down, right], 1), num_kept)
    found, _ = bound(num_kept, weights)(features, full_layout(shape))
    torch.testing.assert_close(found, expected)


@few
@given(shapes, st.integers(1, 6))
def test_every_picture_gets_as_many_tokens(shape: TokenShape, num_queries: int) -> None:
    reduced, layout = bound(num_queries)(features_for(shape), full_layout(shape))
    assert layout.shape == Resampler(num_queries).plan(shape)
    t, h, w = shape.grid
    if shape.modality == "audio":
        assert len(reduced) == min(num_queries, t)
    else:
        assert layout.tokens_per_step == (min(num_queries, h * w),) * t


@few
@given(shapes.filter(lambda shape: shape.modality == "video"), st.integers(1, 6))
def test_a_step_of_a_video_is_read_as_a_picture_of_its_own(shape: TokenShape, count: int) -> None:
    features = features_for(shape)
    whole, _ = bound(count)(features, full_layout(shape))
    _, h, w = shape.grid
    picture = TokenShape.full("image", (1, h, w))
    steps = [bound(count)(rows, full_layout(picture))[0] for rows in features.split(h * w)]
    torch.testing.assert_close(whole, torch.cat(steps))


@few
@given(shapes, st.integers(1, 6))
def test_provenance_is_the_attention(shape: TokenShape, count: int) -> None:
    weights = queries()
    torch.nn.init.zeros_(weights.out_proj.weight)
    features = features_for(shape)
    reduced, layout = bound(count, weights)(features, full_layout(shape))
    torch.testing.assert_close(reduced, provenance_matrix(layout) @ features)


def test_any_first_queries_look_everywhere_at_first() -> None:
    weights = QueryResampler(dim=5, num_queries=64)
    for count in (4, 9, 16, 64):
        places = weights.places[:count].detach()
        corners = torch.cartesian_prod(torch.tensor([-0.5, 0.5]), torch.tensor([-0.5, 0.5]))
        nearest = torch.cdist(corners, places).min(dim=1).values
        assert float(nearest.max()) < 1.5 / count**0.5, count


def test_it_learns_where_to_look() -> None:
    """The answer is the value of the one marked token; the mean over all of them hides it."""
    torch.manual_seed(0)
    weights = QueryResampler(dim=5, num_queries=2, hidden=16, num_heads=2)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.01)
    shape = TokenShape.full("image", (1, 4, 4))

    def error(seed: int) -> torch.Tensor:
        features = features_for(shape, seed=seed)
        features[:, 0] = 0
        features[seed % 16, 0] = 6  # the mark
        reduced, _ = bound(2, weights)(features, full_layout(shape))
        return (reduced[:, 1] - features[seed % 16, 1]).square().mean()

    with torch.no_grad():
        before = torch.stack([error(seed) for seed in range(1000, 1032)]).mean()
    for step in range(120):
        loss = torch.stack([error(8 * step + i) for i in range(8)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = torch.stack([error(seed) for seed in range(1000, 1032)]).mean()
    assert after < 0.4 * before


def test_without_weights_it_plans_but_does_not_run() -> None:
    shape = TokenShape.full("audio", (9, 1, 1))
    assert Resampler(4).num_tokens(shape) == 4
    with pytest.raises(ValueError, match="needs trained queries, but this model has none for au"):
        Resampler(4)(features_for(shape), full_layout(shape))


def test_more_queries_than_there_are_weights_are_refused() -> None:
    shape = TokenShape.full("audio", (9, 1, 1))
    with pytest.raises(ValueError, match=r"Found resampler\(7\), but this model has 6 queries"):
        bound(7)(features_for(shape), full_layout(shape))


def test_a_pruned_video_is_refused() -> None:
    pruned = TokenShape(modality="video", grid=(3, 2, 2), num_tokens=7)
    with pytest.raises(ValueError, match="Found 7 of 12 tokens; resampler needs a token in every"):
        Resampler(2).plan(pruned)


def test_no_query_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Found resampler\(0\); expected at least 1 query"):
        Resampler(0)
