"""Which tasks are answered together: lots about the same media, groups of lots alike in length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from omni.batching.items import Item
from omni.batching.spans import Span
from omni.inputs import OmniInputs
from omni.shared_prompts import shares_media

MAX_GROUP_TOKENS = 16_384  # prompts of groups at the same time, padded; longer ones run alone
# Padding of a prompt costs as much as its tokens: others are at least half as long as the longest,
# or as what costs no more than an operation's overhead.
MIN_FILLED, SHORT_TOKENS = 0.5, 128


@dataclass(slots=True, kw_only=True)
class Task:
    """One question about one item or a part of it."""

    item: Item
    sha256: str | None
    span: Span | None
    question: str
    key: str
    """Of its result in the journal."""
    error_key: str
    """Of its error: errors name the file, so equal files do not share them."""
    field: str | None = None
    schema: dict[str, Any] | None = None
    parts: tuple["Task", ...] = ()
    """Tasks whose answers this one combines; then no medium is opened for it."""
    halves: tuple["Task", ...] = ()
    """Tasks that combine half of them each, where all are too much for one prompt."""
    error: Exception | None = None
    """Why its item cannot be read."""
    inputs: OmniInputs | None = None
    open_s: float = 0.0


class Lot(list[Task]):
    """Tasks about the same media; the questions differ."""

    @property
    def length(self) -> int:
        """Tokens of its longest prompt."""
        return max(task.inputs.num_tokens for task in self if task.inputs is not None)


def find_groups(
    window: Sequence[Task], batch_size: int, *, at_once: int = 1
) -> Iterator[list[Lot]]:
    """Lots of similar length, longest first, while padded they stay within the bounds.

    Args:
        window: Tasks; those that have inputs wait for an answer.
        batch_size: Most lots in a group.
        at_once: Groups that are answered at the same time, and share the bound.
    """
    waiting = sorted(_find_lots(window), key=lambda lot: lot.length)
    while waiting:
        group = [waiting.pop()]
        longest = group[0].length
        prompts = MAX_GROUP_TOKENS // at_once // longest - len(group[0])
        while waiting and len(group) < batch_size and len(waiting[-1]) <= prompts:
            if longest > SHORT_TOKENS and waiting[-1].length < MIN_FILLED * longest:
                break
            prompts -= len(waiting[-1])
            group.append(waiting.pop())
        yield group


def _find_lots(window: Sequence[Task]) -> Iterator[Lot]:
    """Tasks that wait for an answer, those together whose media were opened and planned alike."""
    waiting = [task for task in window if task.inputs is not None]
    for _, tasks in groupby(waiting, key=lambda task: (id(task.item), task.span)):
        lots: list[Lot] = []
        for task in tasks:
            for lot in lots:
                if _share(lot[0], task):
                    lot.append(task)
                    break
            else:
                lots.append(Lot([task]))
        yield from lots


def _share(one: Task, other: Task) -> bool:
    assert one.inputs is not None
    assert other.inputs is not None
    return shares_media(one.inputs, other.inputs)
