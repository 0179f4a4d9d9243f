"""Average pooling: the mean of neighbouring cells, the plainest way to a coarser grid.

    y[t, i, j] = mean of x[t, a, b]   over  a // side = i, b // side = j       image, video
    y[i]       = mean of x[a]         over  a // side = i                      audio

Windows at the border may be smaller, so any grid will do. PLLaVA
(https://arxiv.org/abs/2404.16994) reduces video this way.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full
from token_reduction.grouping import merge_groups
from token_reduction.layout import Modality, TokenLayout, TokenShape, joined_spans


class AvgPool(Reducer):
    """Averages side x side cells of every picture, or `side` steps of a recording.

    Args:
        side: Cells in a row of the window, at least 1.

    Raises:
        ValueError: If `side` is below 1.
    """

    stage: Stage = "after_projector"

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"Found avg_pool side {side}; expected at least 1.")
        self.side = side

    def _window(self, modality: Modality) -> tuple[int, int, int]:
        """Steps, rows and columns of a window."""
        return (self.side, 1, 1) if modality == "audio" else (1, self.side, self.side)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The pooled sides divided by the window's, rounded up.

        Raises:
            ValueError: If tokens were already pruned.
        """
        check_full(shape, "avg_pool")
        sides = zip(shape.grid, self._window(shape.modality), strict=True)
        t, h, w = (-(-cells // window) for cells, window in sides)
        return TokenShape.full(shape.modality, (t, h, w))

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Group cells by window; each has the same weight."""
        shape = self.plan(layout.shape)
        window = self._window(shape.modality)
        t, h, w = (
            torch.arange(cells) // side
            for cells, side in zip(layout.shape.grid, window, strict=True)
        )
        _, height, width = shape.grid
        group = (t[:, None, None] * height + h[:, None]) * width + w  # (t, h, w) of the input
        return merge_groups(
            features,
            layout,
            group=group.flatten(),
            weights=torch.ones(len(features)),
            shape=shape,
            cells=torch.arange(shape.num_tokens),
            time_spans=joined_spans(layout.time_spans, window[0]),
        )
