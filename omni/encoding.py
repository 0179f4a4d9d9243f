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

from omni.inputs import MediaItem, Window
from omni.stopping import check_stop
from omni.towers import batch_key, project, run_tower
from token_reduction import Reducer, ReductionStream, TokenLayout

# Patches (or mel frames) of one tower pass. On an accelerator: enough to keep the matrix units
# busy, little enough that activations stay small; the released serving stack uses the same bound
# for video. A CPU is busy with one 30 s clip, and faster while its activations fit the caches
# (measured: 1.8 times as fast with one clip as with eight, in 230 MB less).
MAX_ROWS_PER_PASS = 32_768
MAX_ROWS_PER_CPU_PASS = 2048
# Of a clip, when shorter ones are padded to its length; the rest of a pass is computed for nothing.
MIN_FILLED = 0.8
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
        hidden, attention = run_tower(model, items, batch)
        projected = [
            project(model, items[index], rows)
            for (index, _), rows in zip(batch, hidden, strict=True)
        ]
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
    """Windows cut into tower passes; kinds, video grids and unlike clip lengths never mix."""
    batch: list[tuple[int, Window]] = []
    key_of_batch: tuple[Any, ...] = ()
    by_kind = sorted(
        range(len(items)),
        key=lambda i: (items[i].modality, items[i].grid[1:], items[i].window_rows),
    )
    for index in by_kind:
        item = items[index]
        start = time.perf_counter()
        for window in item.windows:
            check_stop()
            times.decode_s[index] += time.perf_counter() - start
            key = batch_key(item, window)
            if batch and (key != key_of_batch or not _fits(batch, window, item, max_rows)):
                yield batch
                batch = []
            batch.append((index, window))
            key_of_batch = key
            start = time.perf_counter()
    if batch:
        yield batch


def _fits(
    batch: Sequence[tuple[int, Window]], window: Window, item: MediaItem, max_rows: int
) -> bool:
    """Whether a window may join a pass; clips are padded to the longest, so they must be alike."""
    sizes = [*(len(other.rows) for _, other in batch), len(window.rows)]
    if item.modality != "audio" or window.is_hidden:
        return sum(sizes) <= max_rows
    return min(sizes) >= MIN_FILLED * max(sizes) and len(sizes) * max(sizes) <= max_rows
