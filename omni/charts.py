"""Shapes that a report draws over pictures and along time, computed from evidence alone."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from omni.evidence import CELL_STATES, MediaEvidence, Span, Step

CHART_WIDTH = 1000  # units; charts are stretched to the page
LEAST_SECONDS = 1e-3  # of a video on a chart: one frame of a fast camera rounds to none
MOST_TICKS = 6
TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


class Overlay(NamedTuple):
    """SVG paths over one picture, in the units of its boxes."""

    box: tuple[float, float, float, float]  # left, top, width, height
    dropped: str
    merged: str
    outline: str  # border between what was kept and what was not


class Bar(NamedTuple):
    """Shares of the cells of one stretch of time, of 1."""

    x: float
    width: float
    kept: float
    merged: float
    dropped: float


def overlay(step: Step, entry: MediaEvidence, region: Sequence[float]) -> Overlay:
    """Draw the states of one picture's cells.

    Args:
        step: The picture.
        entry: The medium that it belongs to.
        region: Left, top, right, bottom of what the picture shows.
    """
    left, top, right, bottom = region
    _, rows, columns = entry["grid"]
    width, height = (right - left) / columns, (bottom - top) / rows
    is_kept = np.zeros((rows, columns), dtype=bool)
    for box in step["boxes"]["kept"]:
        first, stop = round((box[0] - left) / width), round((box[2] - left) / width)
        is_kept[round((box[1] - top) / height) : round((box[3] - top) / height), first:stop] = True
    upright = _segments(is_kept.T)  # (column edge, first row, stop row)
    level = _segments(is_kept)
    outline = [
        f"M{left + x * width:g} {top + a * height:g}V{top + b * height:g}" for x, a, b in upright
    ]
    outline += [
        f"M{left + a * width:g} {top + y * height:g}H{left + b * width:g}" for y, a, b in level
    ]
    return Overlay(
        (left, top, right - left, bottom - top),
        _boxes_path(step["boxes"]["dropped"]),
        _boxes_path(step["boxes"]["merged"]),
        "".join(outline),
    )


def _segments(is_kept: np.ndarray) -> Iterable[tuple[int, int, int]]:
    """Stretches of the lines between rows where kept meets not kept: (line, first, stop)."""
    padded = np.pad(is_kept, ((1, 1), (0, 0)))
    for line, is_border in enumerate(padded[1:] != padded[:-1]):
        edges = np.flatnonzero(np.diff(is_border, prepend=False, append=False)).tolist()
        yield from (
            (line, first, stop) for first, stop in zip(edges[::2], edges[1::2], strict=True)
        )


def _boxes_path(boxes: Sequence[Sequence[float]]) -> str:
    return "".join(
        f"M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}Z" for left, top, right, bottom in boxes
    )


def bars_of_steps(steps: Sequence[Step], end_s: float) -> list[Bar]:
    """One bar for each step of a video.

    Args:
        steps: The video's steps.
        end_s: Where the chart ends.
    """
    scale = CHART_WIDTH / max(end_s, LEAST_SECONDS)
    bars = []
    for step in steps:
        start, stop = step["seconds"]
        kept, merged, dropped = (step[name] for name in reversed(CELL_STATES))
        total = kept + merged + dropped
        width = (stop - start) * scale
        bars.append(Bar(start * scale, width, kept / total, merged / total, dropped / total))
    return bars


def bars_of_spans(entry: MediaEvidence, end_s: float) -> list[Bar]:
    """Bars of a recording: what share of each thousandth of it was kept, merged, dropped.

    Args:
        entry: The recording.
        end_s: Where the chart ends.
    """
    if end_s <= 0:
        return []
    edges = np.linspace(0, end_s, CHART_WIDTH + 1)
    shares = np.stack([_shares(entry["spans"][name], edges) for name in reversed(CELL_STATES)], 1)
    shares = shares.round(2)
    starts = np.flatnonzero(np.any(np.diff(shares, axis=0, prepend=-1), axis=1)).tolist()
    return [
        Bar(start, stop - start, *shares[start].tolist())
        for start, stop in zip(starts, [*starts[1:], CHART_WIDTH], strict=True)
    ]


def _shares(spans: Sequence[Span], edges: np.ndarray) -> np.ndarray:
    """What part of the time between neighbouring edges lies in the spans."""
    if not spans:
        return np.zeros(len(edges) - 1)
    times = np.array(spans)
    covered = np.cumsum(times[:, 1] - times[:, 0])
    before = np.interp(
        edges, times.ravel(), np.stack([covered - np.diff(times)[:, 0], covered], 1).ravel()
    )
    return np.diff(before) / np.diff(edges)


def waveform(envelope: Float[Tensor, "columns 2"]) -> str:
    """A recording's waveform as an SVG path, `CHART_WIDTH` wide and from -1 to 1 high.

    Args:
        envelope: Lowest and highest sample of equal stretches. The loudest fills the height.
    """
    loudest = max(float(envelope.abs().max()), 1e-6)  # silence stays a line
    lows, highs = (envelope / loudest).T.tolist()
    width = CHART_WIDTH / len(lows)
    # Down is positive in SVG. Each stretch is at least a hair high, so that silence is seen.
    return "".join(
        f"M{i * width:.4g} {-max(high, 0.01):.3f}h{width:.4g}V{-min(low, -0.01):.3f}h{-width:.4g}z"
        for i, (low, high) in enumerate(zip(lows, highs, strict=True))
    )


def ticks(end_s: float) -> list[float]:
    """Round times for an axis from 0 to near the end, at most `MOST_TICKS` of them.

    Args:
        end_s: Where the axis ends.
    """
    if end_s <= 0:
        return []
    step = next(
        (step for step in TICK_SECONDS if end_s / step < MOST_TICKS), end_s / (MOST_TICKS - 1)
    )
    # The end has a label of its own, which needs room.
    return [round(i * step, 2) for i in range(MOST_TICKS) if i * step <= 0.7 * end_s]
