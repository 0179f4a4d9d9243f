"""A stream gives what one call gives, gradients included, and holds few rows meanwhile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.layouts import features_for, full_layout, rates, videos
from token_reduction import Reducer, TokenLayout, TokenShape, build

# What these hold stays near what they keep.
STREAMING = [
    "evs(0.9)",
    "evs(0.9, floor=1)",
    "temporal_merge(0.9)",
    "uniform(0.9)",
    "random(0.9, seed=3)",
]

specs = st.sampled_from(
    ["evs({})", "temporal_merge({})", "evs({}, floor=2)", "uniform({})", "random({})"]
)


def streamed(
    reducer: Reducer, features: Tensor, layout: TokenLayout, piece: int
) -> tuple[Tensor, TokenLayout, int]:
    """Push pieces; what comes out, and the most rows held after a push."""
    stream, most_held = reducer.stream(layout), 0
    for rows in features.split(piece):
        stream.push(rows)
        most_held = max(most_held, stream.num_held)
    return *stream.finish(), most_held


@settings(max_examples=25, deadline=None)
@given(specs, rates, videos, st.integers(1, 60), st.booleans())
def test_gradients_flow_through_a_stream_as_through_one_call(
    spec: str, rate: float, shape: TokenShape, piece: int, ties: bool
) -> None:
    reducer = build(spec.format(repr(rate)))
    features = features_for(shape, ties=ties)
    at_once, in_pieces = features.clone().requires_grad_(), features.clone().requires_grad_()
    weights = torch.randn(reducer.num_tokens(shape), features.shape[1])
    whole, _ = reducer(at_once, full_layout(shape))
    (whole * weights).sum().backward()
    reduced, _, _ = streamed(reducer, in_pieces, full_layout(shape), piece)
    (reduced * weights).sum().backward()
    assert torch.equal(whole, reduced)
    assert at_once.grad is not None
    assert in_pieces.grad is not None
    assert torch.equal(at_once.grad, in_pieces.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 77, 200])
def test_wide_rows_are_compared_alike_in_any_piece(piece: int, dtype: torch.dtype) -> None:
    # Sums over many channels could depend on how many rows are summed at a time.
    shape = TokenShape.full("video", (9, 5, 7))
    features = features_for(shape, dim=257).to(dtype)
    whole, layout = build("evs(0.6)")(features, full_layout(shape))
    reduced, streamed_layout, _ = streamed(build("evs(0.6)"), features, full_layout(shape), piece)
    assert torch.equal(layout.cells, streamed_layout.cells)
    assert torch.equal(whole, reduced)


@settings(max_examples=25, deadline=None)
@given(videos, st.integers(0, 99), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.7]))
def test_a_pruned_item_streams_too(shape: TokenShape, seed: int, piece: int, rate: float) -> None:
    features, layout = build("random(0.5)")(features_for(shape, seed=seed), full_layout(shape))
    whole, whole_layout = build(f"evs({rate})")(features, layout)
    reduced, reduced_layout, _ = streamed(build(f"evs({rate})"), features, layout, piece)
    assert torch.equal(whole, reduced)
    assert torch.equal(whole_layout.cells, reduced_layout.cells)


@pytest.mark.parametrize("spec", STREAMING)
@pytest.mark.parametrize("piece", [5, 20])
def test_a_stream_holds_about_what_it_keeps(spec: str, piece: int) -> None:
    shape = TokenShape.full("video", (100, 2, 3))
    reducer = build(spec)
    num_kept = reducer.num_tokens(shape)
    _, _, held = streamed(reducer, features_for(shape), full_layout(shape), piece)
    assert held <= num_kept + num_kept // 8 + 2 * 6 + piece  # 6 tokens in a step
    assert held < shape.num_tokens / 3


def test_a_reducer_that_cannot_stream_holds_everything() -> None:
    shape = TokenShape.full("video", (4, 2, 2))
    _, _, held = streamed(build("tubelet(2)"), features_for(shape), full_layout(shape), 5)
    assert held == 16


@pytest.mark.parametrize("spec", [*STREAMING, "tubelet(2)", "evs(0.5)|uniform(0.5)"])
def test_too_few_or_too_many_rows_are_refused(spec: str) -> None:
    layout = full_layout(TokenShape.full("video", (4, 2, 2)))
    short = build(spec).stream(layout)
    short.push(torch.ones(15, 3))
    with pytest.raises(ValueError, match=r"Found 15 feature row\(s\) for a layout of 16 token"):
        short.finish()
    long = build(spec).stream(layout)
    long.push(torch.ones(15, 3))
    with pytest.raises(ValueError, match=r"Found 17 feature row\(s\) for a layout of 16 token"):  # noqa: PT012
        long.push(torch.ones(2, 3))
        long.finish()
