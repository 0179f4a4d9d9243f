"""From media items to decoder embeddings: tower, fixed reduction, projector, chosen reduction.

Work comes in windows (one image, one group of frames, one 30 s audio clip). Windows are
collected until a batch is worth a tower pass, so that many small images run together and an
hour of audio never lies in memory at once; every item is projected and reduced on its own. A
reducer that streams takes the windows as they come, so that of a long video no more is held than
what is left of it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import TokenMerging, watch_class_attention
from omni.inputs import MediaItem, Window
from omni.reduction import members
from token_reduction import Reducer, ReductionStream, TokenLayout, Tome, build
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
    streams: dict[int, ReductionStream | _Attended] = {}

    bound = MAX_ROWS_PER_CPU_PASS if model.device.type == "cpu" else MAX_ROWS_PER_PASS
    for batch in _batches(items, times, bound):
        start = time.perf_counter()
        projected, attention = _run_tower(model, items, batch)
        share = (time.perf_counter() - start) / sum(len(w.rows) for _, w in batch)
        for n, (index, window) in enumerate(batch):
            times.encode_s[index] += share * len(window.rows)
            start = time.perf_counter()
            if index not in streams:
                streams[index] = _open_stream(model, items[index])
            stream = streams[index]
            if isinstance(stream, _Attended):
                stream.push(projected[n], attention[n])
            else:
                stream.push(projected[n])
            times.reduce_s[index] += time.perf_counter() - start

    results = []
    for index in range(len(items)):
        start = time.perf_counter()
        results.append(streams.pop(index).finish())
        times.reduce_s[index] += time.perf_counter() - start
    return results


class _Attended:
    """Rows and how much the tower looks at them; a layout can be made when all are there."""

    def __init__(self, model: Any, item: MediaItem, reducer: Reducer) -> None:
        self.model, self.item, self.reducer = model, item, reducer
        self.tokens: list[Tensor] = []
        self.attention: list[Tensor] = []

    def push(self, tokens: Tensor, attention: Tensor) -> None:
        """Keep the tokens of a window and the attention to its patches."""
        self.tokens.append(tokens)
        self.attention.append(attention.cpu())

    def finish(self) -> tuple[Tensor, TokenLayout]:
        """Reduce all windows at once."""
        steps, height, width = self.item.grid
        received = torch.cat(self.attention).unflatten(0, (-1, height * width))
        # The frames of a tubelet are looked at together; a lone last one has a tubelet of its own.
        frames = self.model.tubelet.num_frames if self.item.modality == "video" else 1
        cells = received.repeat_interleave(frames, dim=0)[:steps].flatten()
        cues = {**_own_cues(self.item, self.reducer), "attention": cells}
        return self.reducer(torch.cat(self.tokens), source_layout(self.model, self.item, cues))


def _open_stream(model: Any, item: MediaItem) -> ReductionStream | _Attended:
    reducer = model.build_reducer(item)
    if "attention" in reducer.cues:
        return _Attended(model, item, reducer)
    return reducer.stream(source_layout(model, item, _own_cues(item, reducer)))


def _own_cues(item: MediaItem, reducer: Reducer) -> Mapping[str, Tensor]:
    """What the medium itself can tell, measured only for a reducer that asks."""
    return item.cues() if reducer.cues and item.cues is not None else {}


def source_layout(
    model: Any, item: MediaItem, cues: Mapping[str, Tensor] | None = None
) -> TokenLayout:
    """Layout of an item's projected tokens: the source grid carried through the fixed reductions.

    Args:
        model: An ``OmniModel``.
        item: The medium.
        cues: Numbers about each source cell, by name.

    Returns:
        The layout after tubelets and pixel shuffle, with provenance in source cells.
    """
    reducers = model.structural_reducers(item.modality)
    steps, height, width = item.grid
    # Some frames at a time: provenance is sorted on the way, which takes many times its own size.
    group = LAYOUT_TUBELETS * model.config.tubelet_frames if item.modality == "video" else steps
    parts = []
    for start in range(0, steps, group):
        stop = min(start + group, steps)
        spans = None if item.time_spans is None else item.time_spans[start:stop]
        here = slice(start * height * width, stop * height * width)
        own = {name: values[here] for name, values in (cues or {}).items()}
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
) -> tuple[list[Tensor], list[Tensor]]:
    """One tower pass over windows of one kind.

    Returns:
        Projected tokens window by window, and the attention to each patch likewise; of the latter
        nothing where no item of the batch needs it.
    """
    modality = items[batch[0][0]].modality
    if modality == "audio":
        return _encode_audio(model, [window for _, window in batch]), []
    grids = [items[index].grid for index, _ in batch]
    windows = [window.rows for _, window in batch]
    rate = merging_rate(items[batch[0][0]])
    merging = TokenMerging(match=bipartite_match, rate=rate) if rate else None
    encode = _encode_images if modality == "image" else _encode_videos
    if not any(needs_attention(items[index]) for index, _ in batch):
        return encode(model, windows, grids, merging), []
    with watch_class_attention(model.vision_model) as seen:
        projected = encode(model, windows, grids, merging)
    per_patch = model.tubelet.num_frames if modality == "video" else 1
    sizes = [
        -(-len(rows) // (height * width * per_patch)) * height * width
        for rows, (_, height, width) in zip(windows, grids, strict=True)
    ]
    return projected, list(torch.cat(seen).split(sizes))


def needs_attention(item: MediaItem) -> bool:
    """Whether an item's reduction asks what the tower looks at."""
    return "attention" in build(item.reduction).part("after_projector").cues


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
