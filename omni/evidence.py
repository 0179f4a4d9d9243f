"""What of every input reached the decoder: kept, merged and dropped cells, in pixels and seconds.

`make_evidence` returns one `MediaEvidence` for each medium, made of JSON types only. It speaks of
*cells*: the places of the grid that the fixed reductions (tubelets, pixel shuffle) leave, each of
which would be one token if nothing else were reduced. Together the cells are the whole source.

    kept     a token stands for this cell alone
    merged   tokens stand for it together with other cells, or for a part of it
    dropped  no token stands for it

A stretch of time or a picture is ``used`` when all its cells were kept, ``dropped`` when all were
dropped, and ``reduced`` otherwise. What lies next to each other and has the same state is stated
once, as a box or a span, so that an hour of sound stays small.

What mixes patches inside a tower without leaving fewer tokens (attention, ``tome``) is not counted:
provenance is that of tokens.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omni.errors import RequestError
from omni.inputs import MediaItem
from token_reduction import TokenLayout

VERSION = 1
DROPPED, MERGED, KEPT = 0, 1, 2  # values of `cell_states`
CELL_STATES: tuple[Literal["dropped", "merged", "kept"], ...] = ("dropped", "merged", "kept")
TOKENS_AT_ONCE = 65_536  # of the provenance; bounds the memory, not the result
TIMELINE_SECONDS = 1.0  # resolution of a recording's timeline

State = Literal["used", "reduced", "dropped"]
Span = list[float]  # start and end in seconds of the source
Box = list[float]  # left, top, right, bottom


class Counts(TypedDict):
    """How many cells of a stretch or a picture were kept, merged and dropped."""

    state: State
    kept: int
    merged: int
    dropped: int


class ByState(TypedDict):
    """Boxes or spans of each state; together they cover everything, without overlap."""

    kept: list[list[float]]
    merged: list[list[float]]
    dropped: list[list[float]]


class Stretch(Counts):
    """A stretch of the source in which everything has the same state."""

    seconds: Span


class Step(Counts):
    """One picture: an image, a page, or the frames that share a step of a video.

    Attributes:
        boxes: Where the cells lie, in the entry's ``unit``.
        seconds: The time that the step stands for; absent for stills.
        frames: Its first and last sampled frame, counted from 1 as in the prompt's labels; videos.
    """

    boxes: ByState
    seconds: NotRequired[Span]
    frames: NotRequired[list[int]]


class NotSampled(TypedDict):
    """Frames of a video that sampling left out, so that no encoder saw them.

    Attributes:
        frames: How many.
        of: Frames of the source.
        seconds: From the first frame left out to the next sampled one, for every gap.
    """

    frames: int
    of: int
    seconds: list[Span]


class MediaEvidence(Counts):
    """One medium.

    Attributes:
        version: Of this structure.
        name: File name, page or track.
        modality: ``image``, ``video`` or ``audio``.
        reduction: Spec of the reduction that was chosen.
        source_grid: Patches ``(frames, rows, columns)`` or ``(audio tokens, 1, 1)``.
        grid: Cells ``(steps, rows, columns)``.
        tokens: What the decoder reads for it.
        unit: What boxes are measured in: ``pixels`` of the source picture, or ``patches`` where
            its size is not known. Pictures and videos.
        size: Width and height of the source picture in that unit.
        page: Page number, counted from 1. Pages of documents; pixels are those at ``dpi``.
        dpi: Dots per inch at which the page was rendered.
        steps: The pictures in order. Pictures and videos.
        spans: Seconds of kept, merged and dropped cells. Recordings.
        padding: Cells at the end that stand for padding and not for any second. Recordings.
        timeline: All seconds of the source in order, without gap. Videos and recordings; of a
            recording to the second, exact times are in ``spans``.
        not_sampled: Frames between the sampled ones. Videos.
        sound: Whether the video's sound track was listened to (then it is an entry of its own):
            ``used``, ``not used`` or ``none``. Videos.
    """

    version: int
    name: str
    modality: str
    reduction: str
    source_grid: list[int]
    grid: list[int]
    tokens: int
    unit: NotRequired[Literal["pixels", "patches"]]
    size: NotRequired[list[float]]
    page: NotRequired[int]
    dpi: NotRequired[float]
    steps: NotRequired[list[Step]]
    spans: NotRequired[ByState]
    padding: NotRequired[int]
    timeline: NotRequired[list[Stretch]]
    not_sampled: NotRequired[NotSampled]
    sound: NotRequired[str]


def make_evidence(
    media: Sequence[MediaItem], before: Sequence[TokenLayout], after: Sequence[TokenLayout]
) -> list[MediaEvidence]:
    """Say for every medium what was kept, merged and dropped.

    Args:
        media: The request's items.
        before: Their layouts after the fixed reductions, complete.
        after: Their layouts after the chosen reduction.

    Returns:
        One entry an item, of JSON types.

    Raises:
        RequestError: A video or recording has no times.
    """
    return [_entry(*parts) for parts in zip(media, before, after, strict=True)]


def cell_states(before: TokenLayout, after: TokenLayout) -> Int[Tensor, " cells"]:
    """The state of every cell: `DROPPED`, `MERGED` or `KEPT`.

    A cell is kept if a token stands for exactly the source cells that the cell has, merged if
    tokens hold only a part of them or more, dropped if no token holds any.

    Args:
        before: The complete layout whose tokens are the cells.
        after: A layout that was made from it.

    Returns:
        One value for each cell of ``before.shape.grid``, row-major.
    """
    num_cells = before.shape.num_tokens
    cell_of_source = torch.full((math.prod(before.source_grid),), -1, dtype=torch.int32)
    for first_cell, cells, sources, _ in _entries(before):
        cell_of_source[sources] = (cells + first_cell).int()
    sources_in_cell = before.source_ptr.diff()

    states = torch.full((num_cells,), DROPPED)
    for _, tokens, sources, weights in _entries(after):
        # 1. One entry for each pair of a token and a source cell that has a share in it.
        cells = cell_of_source[sources].long()
        has_share = (weights > 0) & (cells >= 0)
        tokens, cells = tokens[has_share], cells[has_share]
        states[cells] = states[cells].clamp(min=MERGED)

        # 2. A token that holds one cell alone and whole keeps it.
        num_tokens = int(tokens[-1]) + 1 if len(tokens) else 0
        lowest = torch.full((num_tokens,), num_cells).scatter_reduce(0, tokens, cells, "amin")
        highest = torch.full((num_tokens,), -1).scatter_reduce(0, tokens, cells, "amax")
        is_one_cell = (lowest == highest) & (highest >= 0)
        sources_in_token = torch.bincount(tokens, minlength=num_tokens)
        is_plain = is_one_cell & (sources_in_token == sources_in_cell[highest.clamp(min=0)])
        states[lowest[is_plain]] = KEPT
    return states


def _entries(layout: TokenLayout) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """The provenance some tokens at a time, since all of a long video's is large.

    Yields:
        Number of the first token; for each entry its token, counted from that one, its source
        cell, and its weight.
    """
    for start in range(0, layout.shape.num_tokens, TOKENS_AT_ONCE):
        ptr = layout.source_ptr[start : start + TOKENS_AT_ONCE + 1]
        here = slice(int(ptr[0]), int(ptr[-1]))
        tokens = torch.arange(len(ptr) - 1).repeat_interleave(ptr.diff())
        yield start, tokens, layout.source_cells[here], layout.source_weights[here]


def _entry(item: MediaItem, before: TokenLayout, after: TokenLayout) -> MediaEvidence:
    states = cell_states(before, after).numpy()
    counts = _count(states)
    entry: MediaEvidence = {
        "version": VERSION,
        "name": item.name,
        "modality": item.modality,
        "reduction": item.reduction,
        "source_grid": list(item.grid),
        "grid": list(before.shape.grid),
        "tokens": after.shape.num_tokens,
        "state": counts["state"],
        "kept": counts["kept"],
        "merged": counts["merged"],
        "dropped": counts["dropped"],
    }
    if item.modality != "image" and before.time_spans is None:
        raise RequestError(
            f"{item.name} is {item.modality} without times, and evidence needs the seconds of "
            "every step. Build the request with omni's processor."
        )
    if item.modality == "audio":
        _add_sound(entry, item, before, states)
    else:
        _add_pictures(entry, item, before, states)
    return entry


# -------------------------------------------------------------------- pictures and videos


def _add_pictures(
    entry: MediaEvidence, item: MediaItem, before: TokenLayout, states: np.ndarray
) -> None:
    facts = item.facts
    steps, rows, columns = before.shape.grid
    entry["unit"] = "pixels" if "width" in facts else "patches"
    width, height = facts.get("width", item.grid[2]), facts.get("height", item.grid[1])
    entry["size"] = [width, height]
    if "page" in facts:
        entry["page"], entry["dpi"] = facts["page"], facts["dpi"]
    left, top, right, bottom = facts.get("region", (0, 0, width, height))
    edges = _edges(left, right, columns), _edges(top, bottom, rows)
    pictures = states.reshape(steps, rows, columns)
    entry["steps"] = [_step(picture, *edges) for picture in pictures]
    if item.modality == "image" or before.time_spans is None:
        return
    for step, span, frames in zip(
        entry["steps"], before.time_spans, _frames_of_steps(before), strict=True
    ):
        step["seconds"] = _rounded(*span)
        step["frames"] = frames
    entry["timeline"] = _join(
        {
            **_with_state(step["kept"], step["merged"], step["dropped"]),
            "seconds": step["seconds"],
        }
        for step in entry["steps"]
    )
    total = facts.get("source_frames", item.grid[0])
    entry["not_sampled"] = {
        "frames": total - item.grid[0],
        "of": total,
        "seconds": [_rounded(*span) for span in item.unsampled],
    }
    entry["sound"] = facts.get("sound", "none")


def _step(picture: np.ndarray, x_edges: Sequence[float], y_edges: Sequence[float]) -> Step:
    counts = _count(picture)
    return {
        "state": counts["state"],
        "kept": counts["kept"],
        "merged": counts["merged"],
        "dropped": counts["dropped"],
        "boxes": _boxes(picture, x_edges, y_edges),
    }


def _frames_of_steps(before: TokenLayout) -> list[list[int]]:
    """First and last sampled frame of each step, counted from 1."""
    _, rows, columns = before.shape.grid
    per_frame = before.source_grid[1] * before.source_grid[2]
    first_entries = before.source_ptr[:: rows * columns].tolist()  # of each step, and the end
    frames = before.source_cells // per_frame + 1
    parts = (frames[start:stop] for start, stop in pairwise(first_entries))
    return [[int(part.min()), int(part.max())] for part in parts]


def _edges(low: float, high: float, count: int) -> list[float]:
    """Borders of cells; in whole pixels, unless cells are so small that rounding loses them."""
    size = (high - low) / count
    edges = [low + i * size for i in range(count + 1)]
    return [round(edge) for edge in edges] if size >= 2 else [round(edge, 2) for edge in edges]


def _boxes(picture: np.ndarray, x_edges: Sequence[float], y_edges: Sequence[float]) -> ByState:
    """Cover a picture with boxes: runs of a row, joined with equal runs of the rows below."""
    found: ByState = {"kept": [], "merged": [], "dropped": []}
    open_runs: dict[tuple[int, int, int], int] = {}  # (state, first, stop) -> row where it began

    def close(runs: Iterable[tuple[int, int, int]], bottom: int) -> None:
        for state, first, stop in runs:
            top = open_runs.pop((state, first, stop))
            box = [x_edges[first], y_edges[top], x_edges[stop], y_edges[bottom]]
            found[CELL_STATES[state]].append(box)

    for row, values in enumerate(picture):
        runs = set(_runs(values))
        close([run for run in open_runs if run not in runs], row)
        for run in runs:
            open_runs.setdefault(run, row)
    close(list(open_runs), len(picture))
    for name in CELL_STATES:
        found[name].sort(key=lambda box: (box[1], box[0]))
    return found


# -------------------------------------------------------------------- recordings


def _add_sound(
    entry: MediaEvidence, item: MediaItem, before: TokenLayout, states: np.ndarray
) -> None:
    times = np.array(before.time_spans)  # (cells, 2)
    duration = float(item.facts.get("duration_s", times[-1, 1]))
    is_sound = times[:, 0] < duration
    entry["padding"] = int((~is_sound).sum())
    states, times = states[is_sound], times[is_sound]
    entry["spans"] = {"kept": [], "merged": [], "dropped": []}
    entry["timeline"] = []
    if not len(times):
        return
    # The last token reaches behind the end, or ends less than a hop before it.
    times[-1, 1] = duration
    for state, first, stop in _runs(states):
        span = _rounded(times[first, 0], times[stop - 1, 1])
        entry["spans"][CELL_STATES[state]].append(span)
    second_of_cell = (times[:, 0] // TIMELINE_SECONDS).astype(int)
    entry["timeline"] = _join(
        {
            **_count(states[first:stop]),
            "seconds": _rounded(times[first, 0], times[stop - 1, 1]),
        }
        for _, first, stop in _runs(second_of_cell)
    )


# -------------------------------------------------------------------- parts of both


def _count(states: np.ndarray) -> Counts:
    dropped, merged, kept = np.bincount(states.ravel(), minlength=len(CELL_STATES)).tolist()
    return _with_state(kept, merged, dropped)


def _with_state(kept: int, merged: int, dropped: int) -> Counts:
    state: State = "reduced"
    if not merged and not dropped:
        state = "used"
    elif not merged and not kept:
        state = "dropped"
    return {"state": state, "kept": kept, "merged": merged, "dropped": dropped}


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """(value, first, stop) of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    stops = [*starts[1:].tolist(), len(values)]
    return list(zip(values[starts].tolist(), starts.tolist(), stops, strict=True))


def _join(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Join neighbours of the same state."""
    joined: list[Stretch] = []
    for stretch in stretches:
        if joined and joined[-1]["state"] == stretch["state"]:
            last = joined[-1]
            last["seconds"][1] = stretch["seconds"][1]
            for name in CELL_STATES:
                last[name] += stretch[name]
        else:
            joined.append({**stretch, "seconds": list(stretch["seconds"])})
    return joined


def _rounded(start: float, end: float) -> Span:
    return [round(float(start), 3), round(float(end), 3)]
