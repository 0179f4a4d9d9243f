"""From media items to decoder embeddings: tower, fixed reduction, projector, chosen reduction.

Work comes in windows (one image, one group of frames, one 30 s audio clip). Windows are
collected until a batch is worth a tower pass, so that many small images run together and an
hour of audio never lies in memory at once; every item is projected and reduced on its own. A
reducer that streams takes the windows as they come, so that of a long video no more is held than
what is left of it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import TokenMerging
from omni.inputs import MediaItem, Window
from omni.reduction import members
from token_reduction import ReductionStream, TokenLayout, Tome, build
from token_reduction.matching import bipartite_match

# Patches (or mel frames) of one tower pass. On an accelerator: enough to keep the matrix units
# busy, little enough that activations stay small; the released serving stack uses the same bound
# for video. A CPU is busy with one 30 s clip, and faster while its activations fit the caches
# (measured: 1.8 times as fast with one clip as with eight, in 230 MB less).
MAX_ROWS_PER_PASS = 32_768
MAX_ROWS_PER_CPU_PASS = 4_096
# Tubelets of a video whose layout is made at a time; the result does not depend on it.
LAYOUT_TUBELETS = 32


@dataclass(slots=True)
class StageTimes:
    """Seconds that each item spent in decoding, its tower and its reduction."""

    decode_s: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    reduce_s: list[float] = field(default_factory=list)


def encode_media(
    model: Any, items: Sequence[MediaItem], times: StageTimes | None = None
) -> list[tuple[Tensor, TokenLayout]]:
    """Encode, project and reduce every item.

    1. Decode windows, collect them per tower.
    2. Run the tower; reduce before the projector; project.
    3. Push each item's windows through its reduction after the projector.

    Args:
        model: An ``OmniModel``.
        items: Media of any kinds.
        times: Filled with the seconds of each stage, one entry an item.

    Returns:
        For each item its embeddings ``(kept tokens, hidden)`` and their layout.
    """
    times = times if times is not None else StageTimes()
    times.decode_s, times.encode_s = [0.0] * len(items), [0.0] * len(items)
    times.reduce_s = [0.0] * len(items)
    streams: dict[int, ReductionStream] = {}

    bound = MAX_ROWS_PER_CPU_PASS if model.device.type == "cpu" else MAX_ROWS_PER_PASS
    for batch in _batches(items, times, bound):
        start = time.perf_counter()
        projected = _run_tower(model, items, batch)
        share = (time.perf_counter() - start) / sum(len(w.rows) for _, w in batch)
        for (index, window), tokens in zip(batch, projected, strict=True):
            times.encode_s[index] += share * len(window.rows)
            start = time.perf_counter()
            if index not in streams:
                reducer = model.build_reducer(items[index])
                layout = source_layout(model, items[index], with_cues=bool(reducer.cues))
                streams[index] = reducer.stream(layout)
            streams[index].push(tokens)
            times.reduce_s[index] += time.perf_counter() - start

    results = []
    for index in range(len(items)):
        start = time.perf_counter()
        results.append(streams.pop(index).finish())
        times.reduce_s[index] += time.perf_counter() - start
    return results


def source_layout(model: Any, item: MediaItem, *, with_cues: bool = False) -> TokenLayout:
    """Layout of an item's projected tokens: the source grid carried through the fixed reductions.

    Args:
        model: An ``OmniModel``.
        item: The medium.
        with_cues: Also measure its cues, which may read the medium once more.

    Returns:
        The layout after tubelets and pixel shuffle, with provenance in source cells.
    """
    cues = (item.cues() if with_cues and item.cues is not None else None) or {}
    reducers = model.structural_reducers(item.modality)
    steps, height, width = item.grid
    # Some frames at a time: provenance is sorted on the way, which takes many times its own size.
    group = LAYOUT_TUBELETS * model.config.tubelet_frames if item.modality == "video" else steps
    parts = []
    for start in range(0, steps, group):
        stop = min(start + group, steps)
        spans = None if item.time_spans is None else item.time_spans[start:stop]
        here = slice(start * height * width, stop * height * width)
        own = {name: values[here] for name, values in cues.items()}
        layout = TokenLayout.full(item.modality, (stop - start, height, width), spans, own)
        placeholder = torch.empty(layout.shape.num_tokens, 0)
        for reducer in reducers:
            placeholder, layout = reducer(placeholder, layout)
        parts.append(layout)
    return TokenLayout.join(parts)


def _batches(
    items: Sequence[MediaItem], times: StageTimes, max_rows: int
) -> Iterator[list[tuple[int, Window]]]:
    """Windows cut into tower passes; kinds, video grids and clip lengths never mix."""
    batch: list[tuple[int, Window]] = []
    batch_key: tuple[Any, ...] = ()
    rows = 0
    by_kind = sorted(range(len(items)), key=lambda i: (items[i].modality, items[i].grid[1:]))
    for index in by_kind:
        item = items[index]
        start = time.perf_counter()
        for window in item.windows:
            times.decode_s[index] += time.perf_counter() - start
            key = _batch_key(item, window)
            if batch and (key != batch_key or rows + len(window.rows) > max_rows):
                yield batch
                batch, rows = [], 0
            batch.append((index, window))
            batch_key, rows = key, rows + len(window.rows)
            start = time.perf_counter()
    if batch:
        yield batch


def _batch_key(item: MediaItem, window: Window) -> tuple[Any, ...]:
    if item.modality == "image":
        return ("image", merging_rate(item))
    if item.modality == "video":
        return ("video", *item.grid[1:], merging_rate(item))
    return ("audio", *window.rows.shape, window.num_valid)


def _run_tower(
    model: Any, items: Sequence[MediaItem], batch: list[tuple[int, Window]]
) -> list[Tensor]:
    """One tower pass over windows of one kind; returns projected tokens window by window."""
    modality = items[batch[0][0]].modality
    if modality == "audio":
        return _encode_audio(model, [window for _, window in batch])
    grids = [items[index].grid for index, _ in batch]
    windows = [window.rows for _, window in batch]
    rate = merging_rate(items[batch[0][0]])
    merging = TokenMerging(match=bipartite_match, rate=rate) if rate else None
    encode = _encode_images if modality == "image" else _encode_videos
    return encode(model, windows, grids, merging)


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
    hidden = tower.encode_images(patches, sizes, merging)
    return [
        model.project_vision(tokens, "image", grid)
        for tokens, grid in zip(hidden.split([len(w) for w in windows]), grids, strict=True)
    ]


def _encode_videos(
    model: Any,
    windows: list[Tensor],
    grids: list[tuple[int, int, int]],
    merging: TokenMerging | None,
) -> list[Tensor]:
    """Frames of one grid size; tubelets are made within each window, so videos never mix."""
    tower = model.vision_model
    _, height, width = grids[0]
    tubelets, steps = [], []
    for rows in windows:
        frames = len(rows) // (height * width)
        layout = TokenLayout.full("video", (frames, height, width))
        rows, layout = model.tubelet(rows.to(model.device, tower.dtype), layout)
        tubelets.append(rows)
        steps.append(layout.shape.grid[0])
    hidden = model.encode_tubelets(torch.cat(tubelets), (height, width), merging)
    return [
        model.project_vision(tokens, "video", (t, height, width))
        for tokens, t in zip(hidden.split([len(r) for r in tubelets]), steps, strict=True)
    ]


def _encode_audio(model: Any, windows: list[Window]) -> list[Tensor]:
    """Clips of equal length, trimmed to the tokens that stand for real samples.

    Prompts made by transformers' processor have one placeholder more where the valid frames are a
    multiple of eight; it stands for no sound and gets an empty embedding.
    """
    tower = model.audio_tower
    features = torch.stack([window.rows for window in windows]).to(model.device, tower.dtype)
    lengths = torch.tensor([window.num_valid for window in windows], device=model.device)
    hidden = tower.encode_clip(features, lengths)
    tokens = max(window.num_tokens for window in windows)
    hidden = F.pad(hidden, (0, 0, 0, max(tokens - hidden.shape[1], 0)))
    return [
        model.embed_audio(clip[: window.num_tokens])
        for clip, window in zip(hidden, windows, strict=True)
    ]
