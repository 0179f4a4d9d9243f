"""Pixel shuffle and EVS equal transformers' on the grids where those work."""

import pytest
import torch
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
    compute_retention_mask,
)

from token_reduction import PixelShuffle, TokenLayout, evs_keep_mask


@pytest.mark.parametrize("grid", [(1, 4, 4), (5, 4, 4), (8, 2, 6), (7, 12, 21), (64, 3, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_evs_keeps_what_transformers_keeps(grid: tuple[int, int, int], rate: float) -> None:
    t, h, w = grid
    generator = torch.Generator().manual_seed(t * h * w)
    features = torch.randn(t * h * w, 16, generator=generator)
    theirs = compute_retention_mask(features, num_tubelets=t, q=rate)
    assert torch.equal(evs_keep_mask(features, grid, rate), theirs)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 6), (8, 2)])
def test_pixel_shuffle_equals_transformers(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(height * width, 8, generator=generator)
    # Their method does not use the model it belongs to.
    theirs = NemotronH_Omni_Reasoning_V3.pixel_shuffle(
        None, features.view(1, height, width, 8), scale_factor=0.5
    )
    ours, _ = PixelShuffle(0.5)(features, TokenLayout.full("image", (1, height, width)))
    assert torch.equal(ours, theirs.reshape(-1, 32))
