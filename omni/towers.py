"""Encoder passes: windows of media in, hidden states of the towers out.

What comes out is before the projector and before the chosen reduction: all that a frozen tower
gives, so it can be kept and used again (`Window.is_hidden`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders import TokenMerging, watch_class_attention
from omni.inputs import MediaItem, Window
from omni.reduction import members
from token_reduction import TokenLayout, Tome, build
from token_reduction.matching import bipartite_match


def batch_key(item: MediaItem, window: Window) -> tuple[Any, ...]:
    """What windows must share to pass a tower together."""
    if window.is_hidden:
        return ("hidden", item.modality)
    if item.modality == "image":
        return ("image", merging_rate(item))
    if item.modality == "video":
        return ("video", *item.grid[1:], merging_rate(item))
    return ("audio", window.rows.shape[1])


def run_tower(
    model: Any, items: Sequence[MediaItem], batch: list[tuple[int, Window]]
) -> tuple[list[Tensor], list[Tensor]]:
    """One tower pass over windows with one `batch_key`.

    Args:
        model: An ``OmniModel``.
        items: Media.
        batch: Windows, each with the index of its item.

    Returns:
        Hidden states window by window (a row a patch, tubelet patch or audio token), and the
        attention to each patch likewise; of the latter nothing where no item needs it.
    """
    modality = items[batch[0][0]].modality
    windows = [window for _, window in batch]
    if windows[0].is_hidden:
        return [window.rows.to(model.device) for window in windows], []
    if modality == "audio":
        return _encode_audio(model, windows), []
    grids = [items[index].grid for index, _ in batch]
    rows = [window.rows for window in windows]
    rate = merging_rate(items[batch[0][0]])
    merging = TokenMerging(match=bipartite_match, rate=rate) if rate else None
    encode = _encode_images if modality == "image" else _encode_videos
    if not any(needs_attention(items[index].reduction) for index, _ in batch):
        return encode(model, rows, grids, merging), []
    with watch_class_attention(model.vision_model) as seen:
        hidden = encode(model, rows, grids, merging)
    return hidden, list(torch.cat(seen).split([len(states) for states in hidden]))


def project(model: Any, item: MediaItem, hidden: Tensor) -> Tensor:
    """Tokens ``(tokens, decoder width)`` of one window's hidden states."""
    if item.modality == "audio":
        tokens: Tensor = model.embed_audio(hidden)
        return tokens
    _, height, width = item.grid
    steps = len(hidden) // (height * width)
    tokens = model.project_vision(hidden, item.modality, (steps, height, width))
    return tokens


def needs_attention(reduction: str) -> bool:
    """Whether a reduction, by its spec string, asks what the tower looks at."""
    return "attention" in build(reduction).part("after_projector").cues


def merging_rate(item: MediaItem) -> float:
    """Fraction of an item's patches that its request wants merged inside the tower; 0 is none."""
    rates = [r.rate for r in members(build(item.reduction)) if isinstance(r, Tome)]
    return max(rates, default=0.0)


def _encode_images(
    model: Any,
    windows: list[Tensor],
    grids: list[tuple[int, int, int]],
    merging: TokenMerging | None,
) -> list[Tensor]:
    """Pictures of any grids, packed; none sees another."""
    tower = model.vision_model
    sizes = torch.tensor([grid[1:] for grid in grids])
    patches = torch.cat(windows).to(model.device, tower.dtype)
    return list(tower.encode_images(patches, sizes, merging).split([len(w) for w in windows]))


def _encode_videos(
    model: Any,
    windows: list[Tensor],
    grids: list[tuple[int, int, int]],
    merging: TokenMerging | None,
) -> list[Tensor]:
    """Frames of one grid size; tubelets are made within each window, so videos never mix."""
    tower = model.vision_model
    _, height, width = grids[0]
    tubelets = []
    for rows in windows:
        frames = len(rows) // (height * width)
        layout = TokenLayout.full("video", (frames, height, width))
        tubelets.append(model.tubelet(rows.to(model.device, tower.dtype), layout)[0])
    hidden: Tensor = model.encode_tubelets(torch.cat(tubelets), (height, width), merging)
    return list(hidden.split([len(rows) for rows in tubelets]))


def _encode_audio(model: Any, windows: list[Window]) -> list[Tensor]:
    """Clips, padded to the longest, trimmed to the tokens that stand for real samples.

    Prompts made by transformers' processor have one placeholder more where the valid frames are a
    multiple of eight; it stands for no sound and gets an empty embedding.
    """
    tower = model.audio_tower
    rows = nn.utils.rnn.pad_sequence([window.rows for window in windows], batch_first=True)
    features = rows.to(model.device, tower.dtype)
    lengths = torch.tensor([window.num_valid for window in windows], device=model.device)
    hidden = tower.encode_clip(features, lengths)
    tokens = max(window.num_tokens for window in windows)
    hidden = F.pad(hidden, (0, 0, 0, max(tokens - hidden.shape[1], 0)))
    return [clip[: window.num_tokens] for clip, window in zip(hidden, windows, strict=True)]
