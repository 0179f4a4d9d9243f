"""Loudness of each audio token, for reducers that drop silence."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from encoders.audio.features import HOP_LENGTH, SUBSAMPLING_FACTOR

FLOOR_DB = -120.0  # digital silence


def token_energy(
    waveform: Float[Tensor, " samples"], num_tokens: int, factor: int = SUBSAMPLING_FACTOR
) -> Float[Tensor, " tokens"]:
    """Measure how loud each token's stretch of a clip is.

    Args:
        waveform: One clip at 16 kHz, within -1 to 1.
        num_tokens: Tokens of the clip; a stretch behind its end is silence.
        factor: Mel frames in one token.

    Returns:
        Mean power of each stretch of `factor` x 10 ms in decibels, 0 for a full-scale square wave,
        at least -120.
    """
    span = HOP_LENGTH * factor
    samples = waveform[: num_tokens * span].double()
    power = F.pad(samples, (0, num_tokens * span - len(samples))).square().view(-1, span).mean(1)
    return (10 * power.clamp(min=10 ** (FLOOR_DB / 10)).log10()).to(torch.float32)
