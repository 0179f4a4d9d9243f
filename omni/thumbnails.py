"""Small pictures of what the encoders were given, made again from a medium's windows.

Pictures and frames are the resized ones whose patches the vision tower reads; sound is the log-mel
spectrogram that the audio tower reads. Windows are read one at a time, so a long medium is never
all in memory.
"""

import base64
import io
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.audio.features import HOP_LENGTH, SAMPLING_RATE
from omni.inputs import MediaItem

MEL_FRAME_SECONDS = HOP_LENGTH / SAMPLING_RATE
SPECTROGRAM_COLUMNS, SPECTROGRAM_HEIGHT = 1200, 160  # pixels
LOWEST, HIGHEST = -2.0, 3.0  # standard deviations that the colours span
# Colours from quiet to loud; lightness rises all the way, so that it also reads without colour.
RAMP = ((8, 10, 30), (38, 40, 110), (24, 110, 140), (70, 180, 120), (245, 235, 130))


def frames(
    item: MediaItem, wanted: Collection[int], mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[int, PIL.Image.Image]]:
    """Frames of a video, or the one picture of an image, as the vision tower gets them.

    Args:
        item: A video or an image.
        wanted: Which of the sampled frames, counted from 0.
        mean: Per-channel mean that was subtracted, for values in [0, 1].
        std: Per-channel standard deviation that was divided by.

    Yields:
        Number and picture of each wanted frame, in order.
    """
    _, height, width = item.grid
    number = 0
    for window in item.windows:
        for patches in window.rows.split(height * width):
            if number in wanted:
                yield number, _from_patches(patches, (height, width), mean, std)
            number += 1


def spectrogram(item: MediaItem, duration_s: float) -> PIL.Image.Image:
    """The log-mel spectrogram of a recording, low notes at the bottom.

    Args:
        item: A recording.
        duration_s: Where the picture ends; what lies behind it is padding.

    Returns:
        A picture with a palette, at most `SPECTROGRAM_COLUMNS` wide.
    """
    columns = max(min(SPECTROGRAM_COLUMNS, int(duration_s / MEL_FRAME_SECONDS)), 1)
    sums: Tensor | None = None
    counts = torch.zeros(columns)
    number = 0
    for window in item.windows:
        rows = window.rows[: window.num_valid].float()  # (frames, mel)
        sums = torch.zeros(columns, rows.shape[1]) if sums is None else sums
        times = (number + torch.arange(len(rows))) * MEL_FRAME_SECONDS
        place = (times / max(duration_s, MEL_FRAME_SECONDS) * columns).long()
        inside = place < columns
        sums.index_add_(0, place[inside], rows[inside])
        counts.index_add_(0, place[inside], torch.ones(int(inside.sum())))
        number += window.num_valid
    assert sums is not None  # a recording has at least one clip
    levels = (sums / counts.clamp(min=1)[:, None] - LOWEST) / (HIGHEST - LOWEST)
    pixels = (levels.clamp(0, 1) * 255).to(torch.uint8).T.flip(0).contiguous()
    picture = PIL.Image.fromarray(pixels.numpy()).resize((columns, SPECTROGRAM_HEIGHT))
    picture.putpalette(_palette())
    return picture


def data_uri(picture: PIL.Image.Image, longest_side: int) -> str:
    """A picture as a ``data:`` address: PNG if it has a palette, else JPEG.

    Args:
        picture: The picture.
        longest_side: It is scaled down to at most this many pixels.
    """
    picture = picture.copy()
    kind = "PNG" if picture.mode == "P" else "JPEG"
    picture.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, quality=82)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _from_patches(
    patches: Float[Tensor, "patches values"],
    grid: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> PIL.Image.Image:
    """Undo patching and normalisation."""
    height, width = grid
    side = math.isqrt(patches.shape[1] // 3)
    squares = patches.float().reshape(height, width, 3, side, side)
    pixels = squares.permute(0, 3, 1, 4, 2).reshape(height * side, width * side, 3)
    values = (pixels * torch.tensor(std) + torch.tensor(mean)) * 255
    return PIL.Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def _palette() -> list[int]:
    """256 colours, red green blue one after another."""
    places = np.linspace(0, 255, len(RAMP))
    channels = [np.interp(np.arange(256), places, values) for values in zip(*RAMP, strict=True)]
    return np.stack(channels, axis=1).round().astype(int).ravel().tolist()
