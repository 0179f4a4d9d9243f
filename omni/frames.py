"""Which sampled frames of a video are worth the tower, from one look at them in low resolution."""

from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from omni.media import FramePlan, Video
from token_reduction import Reducer, TokenLayout

# Cells on a side of the coarse picture by which frames are compared. Noise of the camera and of
# compression averages out in a cell; what is much smaller than a cell hardly counts.
GRID = 16


def choose_frames(video: Video, plan: FramePlan, reducer: Reducer) -> FramePlan:
    """Keep of a plan's frames those that a reducer of frames keeps.

    Decodes the planned frames once, holding one at a time and 16 x 16 mean colours of each.

    Args:
        video: The source.
        plan: Its sampled frames.
        reducer: What to keep, such as `Keyframes`; a chain without members keeps all and decodes
            nothing.

    Returns:
        A plan of the kept frames, with their own indices and times.
    """
    layout = TokenLayout.full("video", (plan.num_frames, GRID, GRID))
    if reducer.plan(layout.shape) == layout.shape:
        return plan
    colours = torch.cat([mean_colours(frame) for frame in video.frames(plan)])
    _, kept = reducer(colours, layout)
    frames = (kept.source_cells // GRID**2).unique().tolist()
    return replace(
        plan,
        indices=tuple(plan.indices[frame] for frame in frames),
        timestamps_s=tuple(plan.timestamps_s[frame] for frame in frames),
    )


def mean_colours(frame: UInt8[Tensor, "height width 3"]) -> Float[Tensor, "cells 3"]:
    """Mean red, green and blue (0-255) in each of 16 x 16 cells, row by row."""
    cells = F.adaptive_avg_pool2d(frame.permute(2, 0, 1).float(), GRID)  # (3, 16, 16)
    return cells.flatten(1).T
