"""Keyframes: frames that hardly differ from the one before are left out before the tower.

    d[f] = mean |x[f] - x[f - 1]|       f >= 1, over all cells and channels of a frame
    K    = F * (1 - q), a half rounded down, at least 1

The first frame and the K - 1 others with the largest d are kept, ties to the earliest. On pixels
this is the criterion of Efficient Video Sampling (https://arxiv.org/abs/2510.14624, L1 distance
to the frame before) for whole frames, with a fixed number instead of a percentile, so that the
count follows from the shape.
"""

# Shape legend
#   F = frames, K = kept frames, N = cells in a frame, C = width

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full, check_rate, count_kept
from token_reduction.evs import largest
from token_reduction.layout import TokenLayout, TokenShape


class Keyframes(Reducer):
    """Keeps the first frame and those that differ most from the frame before.

    A kept frame lasts until the next kept one begins. Gradients reach kept frames and no others.

    Args:
        rate: Fraction of frames to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "frames"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """K frames of the same size.

        Raises:
            ValueError: If the item is not a video, or patches were already pruned.
        """
        if shape.modality != "video":
            raise ValueError(
                f"Found {shape.modality}; keyframes takes only video. "
                "Leave it out of the reduction of other modalities."
            )
        check_full(shape, "keyframes")
        frames, h, w = shape.grid
        return TokenShape.full("video", (count_kept(frames, self.rate), h, w))

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select frames; values are untouched."""
        shape = self.plan(layout.shape)
        num_frames = layout.shape.grid[0]
        rows = features.unflatten(0, (num_frames, -1))  # (F, N, C)
        change = _change(rows)
        kept = torch.cat([change.new_zeros(1).long(), 1 + largest(change, shape.grid[0] - 1)])

        spans, frames = layout.time_spans, kept.tolist()
        if spans is not None:
            ends = [spans[frame][0] for frame in frames[1:]] + [spans[-1][1]]
            spans = tuple((spans[frame][0], end) for frame, end in zip(frames, ends, strict=True))
        merged = layout.merge(
            shape=shape,
            cells=torch.arange(shape.num_tokens),
            time_spans=spans,
            group_ptr=torch.arange(shape.num_tokens + 1),
            members=torch.arange(len(features))
            .unflatten(0, (num_frames, -1))[kept.cpu()]
            .flatten(),
            weights=torch.ones(shape.num_tokens),
        )
        return rows[kept].flatten(0, 1), merged


@torch.no_grad()
def _change(rows: Float[Tensor, "frames cells dim"]) -> Float[Tensor, " changes"]:
    """Compute d of every frame but the first, in float32, one frame at a time."""
    changes = [(now.float() - before.float()).abs().mean() for before, now in pairwise(rows)]
    return torch.stack(changes) if changes else rows.new_zeros(0, dtype=torch.float32)
