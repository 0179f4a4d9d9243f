"""Tubelets: patches of consecutive frames side by side, ready for one embedding each.

The tower then sees half as many patches. This is a 3-D convolution written as a re-ordering
followed by the tower's linear video embedder.
"""

# Shape legend
#   T = tubelets, N = patches in a frame, n = frames in a tubelet, D = patch width

import torch
from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full
from token_reduction.layout import TokenLayout, TokenShape, joined_spans


class Tubelet(Reducer):
    """Lays the patches of `num_frames` consecutive frames side by side, in time order.

    A clip whose length is not a multiple repeats its own last frame.

    Args:
        num_frames: Frames in a tubelet, at least 1.

    Raises:
        ValueError: If `num_frames` is below 1.
    """

    stage: Stage = "frames"

    def __init__(self, num_frames: int = 2) -> None:
        super().__init__()
        if num_frames < 1:
            raise ValueError(f"Found tubelet of {num_frames} frames; expected at least 1.")
        self.num_frames = num_frames

    def plan(self, shape: TokenShape) -> TokenShape:
        """Steps divided by the frames in a tubelet, rounded up.

        Raises:
            ValueError: If the item is not a video, or patches were already pruned.
        """
        if shape.modality != "video":
            raise ValueError(
                f"Found {shape.modality}; tubelet takes only video. "
                "Leave it out of the reduction of other modalities."
            )
        check_full(shape, "tubelet")
        frames, h, w = shape.grid
        tubelets = -(-frames // self.num_frames)
        return TokenShape.full("video", (tubelets, h, w))

    def output_dim(self, dim: int) -> int:
        """Width of one row from each frame side by side."""
        return dim * self.num_frames

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Group frames; a source cell weighs as much as it occurs in the tubelet."""
        return steps_side_by_side(features, layout, self.num_frames)


def steps_side_by_side(
    features: Float[Tensor, "tokens dim"], layout: TokenLayout, num_steps: int
) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
    """Lay the cells of `num_steps` consecutive steps side by side; the last step repeats."""
    steps, h, w = layout.shape.grid
    n = num_steps
    groups = -(-steps // n)
    shape = TokenShape.full(layout.shape.modality, (groups, h, w))

    # Which step stands in each place of each group; the last one repeats.
    order = torch.arange(groups * n).clamp(max=steps - 1)  # (T*n,)

    def group(rows: Tensor) -> Tensor:
        dim = rows.shape[1]
        by_step = rows.reshape(steps, h * w, dim)[order.to(rows.device)]
        by_group = by_step.reshape(groups, n, h * w, dim).transpose(1, 2)  # (T, N, n, D)
        return by_group.reshape(groups * h * w, n * dim)

    members = group(torch.arange(len(features))[:, None])  # (T*N, n)
    merged = layout.merge(
        shape=shape,
        cells=torch.arange(shape.num_tokens),
        time_spans=joined_spans(layout.time_spans, n),
        group_ptr=torch.arange(shape.num_tokens + 1) * n,
        members=members.flatten(),
        weights=torch.full((members.numel(),), 1 / n),
    )
    return group(features), merged
