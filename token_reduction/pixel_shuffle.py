"""Pixel shuffle: squares of neighbouring cells laid side by side in one wider token.

Nothing is lost: four narrow tokens become one of four times the width, and the projector
learns what to keep. Row and column order is that of "v2" in InternVL
(https://arxiv.org/abs/2404.16821), which the released model uses.
"""

# Shape legend
#   t, h, w = grid of the output, k = side of the square, D = width of an input row

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full
from token_reduction.layout import TokenLayout, TokenShape


class PixelShuffle(Reducer):
    """Lays k x k neighbouring cells side by side, row by row, in one token.

    Args:
        ratio: Side of the output grid over the side of the input grid, 1 / k for a whole k.

    Raises:
        ValueError: If `ratio` is not 1 / k.
    """

    stage: Stage = "before_projector"

    def __init__(self, ratio: float = 0.5) -> None:
        super().__init__()
        side = round(1 / ratio) if 0 < ratio <= 1 else 0
        if side < 1 or abs(side * ratio - 1) > 1e-2:  # allows 0.333 for a third
            raise ValueError(
                f"Found pixel_shuffle ratio {ratio}; expected one over a whole number, "
                "such as 0.5 (2 x 2 cells to a token)."
            )
        self.side = side

    def plan(self, shape: TokenShape) -> TokenShape:
        """Height and width divided by k.

        Raises:
            ValueError: If k does not divide them, or tokens were already pruned.
        """
        check_full(shape, "pixel_shuffle")
        t, h, w = shape.grid
        k = self.side
        if h % k or w % k:
            raise ValueError(
                f"Found grid (t, h, w) = {shape.grid}; pixel_shuffle needs height and width "
                f"divisible by {k}. Choose the image or frame size accordingly."
            )
        return TokenShape.full(shape.modality, (t, h // k, w // k))

    def output_dim(self, dim: int) -> int:
        """Width of k * k input rows side by side."""
        return dim * self.side**2

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Group cells into squares; each source cell has the same weight in its token."""
        shape = self.plan(layout.shape)
        t, h, w = shape.grid
        k = self.side

        def group(rows: Tensor) -> Tensor:
            dim = rows.shape[1]
            squares = rows.reshape(t, h, k, w, k, dim).transpose(2, 3)  # (t, h, w, k, k, D)
            return squares.reshape(t * h * w, k * k * dim)

        members = group(torch.arange(len(features))[:, None])  # (t*h*w, k*k)
        merged = layout.merge(
            shape=shape,
            cells=torch.arange(shape.num_tokens),
            time_spans=layout.time_spans,
            group_ptr=torch.arange(shape.num_tokens + 1) * k * k,
            members=members.flatten(),
            weights=torch.full((members.numel(),), 1 / k**2),
        )
        return group(features), merged
