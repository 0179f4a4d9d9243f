"""Media items for reducer tests: shapes to draw from, features to push through."""

import math
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from token_reduction import TokenLayout, TokenShape

sides = st.integers(1, 6)
rates = st.floats(0.0, 1.0, exclude_max=True) | st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.75])
videos = st.builds(
    lambda t, h, w: TokenShape.full("video", (t, h, w)), st.integers(1, 7), sides, sides
)
images = st.builds(lambda h, w: TokenShape.full("image", (1, h, w)), sides, sides)
sounds = st.builds(lambda t: TokenShape.full("audio", (t, 1, 1)), st.integers(1, 40))
shapes = videos | images | sounds


def full_layout(shape: TokenShape) -> TokenLayout:
    """The un-reduced layout of a shape as the gateway makes it.

    Half a second to a step where there is time; sound carries its energy.
    """
    steps = shape.grid[0]
    spans = None if shape.modality == "image" else tuple((i / 2, i / 2 + 0.5) for i in range(steps))
    if shape.modality == "audio":
        cues = {"energy": loudness(steps)}
    else:
        cues = {"attention": -0.1 / loudness(math.prod(shape.grid)).sub(1)}
    return TokenLayout.full(shape.modality, shape.grid, spans, cues)


def loudness(steps: int) -> Tensor:
    """Decibels of so few values that many are equal, up and down over time."""
    return -10.0 * (torch.arange(steps) * 7 % 5)


def features_for(shape: TokenShape, *, dim: int = 5, seed: int = 0, ties: bool = False) -> Tensor:
    """Rows for a shape; with `ties` they come from so few values that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.num_tokens, dim)
    if ties:
        return torch.randint(-1, 2, size, generator=generator).float()
    return torch.randn(size, generator=generator)


def axis_rows(num_rows: int, *, dim: int = 3, generator: torch.Generator) -> Tensor:
    """Rows along an axis, one way or the other: their cosines are -1, 0 or 1 without rounding."""
    axis = torch.randint(dim, (num_rows,), generator=generator)
    sign = torch.randint(2, (num_rows, 1), generator=generator) * 2 - 1
    return torch.eye(dim)[axis] * sign


def provenance(layout: TokenLayout) -> list[dict[int, float]]:
    """For every token {source cell: weight}."""
    ptr = layout.source_ptr.tolist()
    cells, weights = layout.source_cells.tolist(), layout.source_weights.tolist()
    return [dict(zip(cells[a:b], weights[a:b], strict=True)) for a, b in pairwise(ptr)]


def provenance_matrix(layout: TokenLayout) -> Tensor:
    """Weight of every source cell in every token, (tokens, source cells)."""
    t, h, w = layout.source_grid
    rows = torch.arange(layout.shape.num_tokens).repeat_interleave(layout.source_ptr.diff())
    matrix = torch.zeros(layout.shape.num_tokens, t * h * w)
    matrix[rows, layout.source_cells] = layout.source_weights
    return matrix


def assert_same_layout(left: TokenLayout, right: TokenLayout) -> None:
    """Two layouts agree in every field."""
    assert left.shape == right.shape
    assert left.time_spans == right.time_spans
    assert left.source_grid == right.source_grid
    for name in ("cells", "source_ptr", "source_cells", "source_weights"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name))
