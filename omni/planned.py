"""What planning gives: the items of each medium, and the text that belongs to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omni.inputs import LazyWindows, MediaItem, Modality, Window

MakeWindows = Callable[[], Iterator[Window]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMedium:
    """One marker's worth: its items, the text before it, and the labels between its steps."""

    items: list[MediaItem]
    lead_in: str = ""
    step_labels: tuple[str, ...] = ()


def make_item(
    modality: Modality,
    windows: MakeWindows,
    grid: tuple[int, int, int],
    time_spans: tuple[tuple[float, float], ...] | None,
    num_tokens: int,
    name: str,
    facts: Mapping[str, Any],
    chosen: Mapping[str, Any],
    window_rows: int,
) -> MediaItem:
    """An item without a place; the processor gives it one.

    Args:
        modality: Which encoder reads it.
        windows: Makes its encoder inputs.
        grid: Source cells ``(t, h, w)``.
        time_spans: Seconds of each step; None for stills.
        num_tokens: Tokens after reduction.
        name: What to call it.
        facts: What the gateway knows of it.
        chosen: Settings that it was planned with; ``reduction`` is the item's own.
        window_rows: Rows of its largest window.
    """
    return MediaItem(
        modality=modality,
        windows=LazyWindows(windows),
        grid=grid,
        time_spans=time_spans,
        reduction=chosen["reduction"],
        token_id=-1,
        num_tokens=num_tokens,
        name=name,
        facts=facts,
        chosen=chosen,
        window_rows=window_rows,
    )


def note_asked(
    chosen: Sequence[PlannedMedium], asked: Sequence[PlannedMedium]
) -> list[PlannedMedium]:
    """Write into each item what was asked, where something else was chosen.

    Args:
        chosen: The plan that fits a budget.
        asked: The plan of the same media as asked.
    """
    noted = []
    for medium, before in zip(chosen, asked, strict=True):
        wanted = before.items[0].chosen  # tiles of one picture have the same settings
        items = [
            replace(item, asked={k: v for k, v in wanted.items() if item.chosen[k] != v})
            for item in medium.items
        ]
        noted.append(replace(medium, items=items))
    return noted
