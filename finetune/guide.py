"""Tell attention where to read: on the character that comes next, and on the last one read.

A decoder that spells what a picture shows has to find each character's place in it. Left alone it
takes a hundred thousand lines to find out that there is a place to look for. In training the places
are often known, so one head of the last attention layer is told to look at the next character, and
one of the first at the one before: guided attention, as in speech synthesis (Tachibana, Uenoyama
and Aihara 2018), with known places instead of a diagonal. Nothing of it is left in the model.

    loss = -mean over characters of log( attention that falls on the tokens of the character )

Marks are kept with the picture that shows the character (`MediaItem.facts`) and count from its
first token, so they hold wherever packing puts the sample.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from omni.backbone.attention import Attention
from omni.errors import RequestError
from omni.inputs import MediaItem, OmniInputs
from omni.model import OmniModel

FACT = "shows"  # key of the marks in `MediaItem.facts`
HEAD = 0  # of the queries, and of the keys
FOLD = 2  # patches a side that make one token
REACH = 0.5  # columns on either side of a character that are right as well


class Span(NamedTuple):
    """A part of a picture: shares of its width, and of its height."""

    left: float
    right: float
    top: float = 0.0
    bottom: float = 1.0


class Mark(NamedTuple):
    """A character that a picture shows."""

    query: int
    """Where it is predicted, counted from the picture's first token."""
    tokens: tuple[int, ...]
    """The picture's tokens that show it, counted likewise."""


class Places(NamedTuple):
    """Where the characters of a batch are, one entry for each that is predicted."""

    rows: Int[Tensor, " characters"]
    queries: Int[Tensor, " characters"]
    """Position at which the character is predicted."""
    visible: Bool[Tensor, "characters positions"]
    """Positions of the same sample, up to the query."""
    current: Bool[Tensor, "characters positions"]
    """Tokens of the picture that show the character."""
    previous: Bool[Tensor, "characters positions"]
    """Tokens that show the one before; of the first, itself."""


def mark(inputs: OmniInputs, shown: Iterable[tuple[int, int, Span]]) -> OmniInputs:
    """Note which characters of the answer a sample's pictures show, and where.

    Args:
        inputs: One row.
        shown: Of each character its position in the row, which medium shows it, and where.

    Raises:
        RequestError: A medium that is no picture, or one whose tokens were reduced.
    """
    marks: dict[int, list[Mark]] = {}
    for position, number, span in shown:
        item = inputs.media[number]
        tokens = _tokens_in(item, span)
        marks.setdefault(number, []).append(Mark(position - 1 - item.start, tokens))
    media = [
        replace(item, facts={**item.facts, FACT: tuple(marks[n])}) if n in marks else item
        for n, item in enumerate(inputs.media)
    ]
    return replace(inputs, media=media)


def count_marks(inputs: OmniInputs) -> int:
    """Characters of a batch whose place is known."""
    return sum(len(item.facts.get(FACT, ())) for item in inputs.media)


def find_places(inputs: OmniInputs) -> Places | None:
    """Find the marked characters of a batch, packed or padded on the right.

    Returns:
        Their places; None if nothing is marked.
    """
    found = sorted(
        (
            (item.row, item.start + mark.query, [item.start + t for t in mark.tokens])
            for item in inputs.media
            for mark in item.facts.get(FACT, ())
        ),
        key=lambda entry: entry[:2],
    )
    if not found:
        return None
    rows, queries = (torch.tensor([entry[i] for entry in found]) for i in (0, 1))
    length = inputs.input_ids.shape[1]
    segments = inputs.segment_ids
    if segments is None:
        segments = torch.zeros_like(inputs.input_ids)
    own = segments.cpu()[rows, queries]
    visible = torch.arange(length) <= queries[:, None]
    visible &= segments.cpu()[rows] == own[:, None]
    current = torch.zeros_like(visible)
    for i, (_, _, tokens) in enumerate(found):
        current[i, tokens] = True
    goes_on = torch.zeros(len(found), dtype=torch.bool)
    goes_on[1:] = (rows[1:] == rows[:-1]) & (own[1:] == own[:-1])
    previous = torch.where(goes_on[:, None], current.roll(1, 0), current)
    return Places(rows, queries, visible, current, previous)


def _tokens_in(item: MediaItem, span: Span) -> tuple[int, ...]:
    """A picture's tokens that show a part of it, or touch that at its sides."""
    steps, height, width = item.grid[0], item.grid[1] // FOLD, item.grid[2] // FOLD
    if item.modality != "image" or item.num_tokens != steps * height * width:
        raise RequestError(
            f"{item.name}: expected a picture with all of its {steps * height * width} tokens, to "
            f"say what its columns show; found {item.modality} with {item.num_tokens}."
        )
    columns = _cells(span.left, span.right, width, REACH)
    lines = _cells(span.top, span.bottom, height, 0.0)  # the rows of print above are near
    return tuple(line * width + column for line in lines for column in columns)


def _cells(start: float, end: float, count: int, reach: float) -> range:
    """Columns, or rows, of tokens between two shares of a side; one at least."""
    first = max(0, int(np.floor(start * count - reach)))
    last = min(count - 1, int(np.ceil(end * count + reach)) - 1)
    return range(min(first, last), last + 1)


class ReadingGuide:
    """Watches the first and the last attention layer of a model that trains.

    Args:
        model: With a hybrid decoder.

    Raises:
        RequestError: It has no attention layers that can be watched.
    """

    def __init__(self, model: OmniModel) -> None:
        layers: Iterable[Any] = getattr(model.language_model.model, "layers", ())
        mixers = [
            layer.mixer for layer in layers if isinstance(getattr(layer, "mixer", None), Attention)
        ]
        if not mixers:
            raise RequestError(
                "guidance wants attention layers of the hybrid decoder, and found none; leave it "
                "out"
            )
        self.mixers: tuple[Any, Any] = (mixers[0], mixers[-1])
        self.inputs: dict[nn.Module, Tensor] = {}
        self.hooks = [m.register_forward_pre_hook(self._remember) for m in {*self.mixers}]

    def _remember(self, mixer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inputs[mixer] = args[0]

    def close(self) -> None:
        """Watch no longer."""
        for hook in self.hooks:
            hook.remove()
        self.inputs.clear()

    def loss(self, places: Places) -> Tensor:
        """Return what the pass that has just been made missed, summed over the characters."""
        first, last = self.mixers
        return 0.5 * (
            self._miss(first, places, places.previous) + self._miss(last, places, places.current)
        )

    def _miss(self, mixer: Any, places: Places, right: Tensor) -> Tensor:
        queries, keys, _ = mixer.project(self.inputs[mixer])
        total = queries.new_zeros((), dtype=torch.float32)
        for row in places.rows.unique().tolist():
            here = places.rows == row
            asked = queries[row, HEAD, places.queries[here].to(queries.device)]
            scores = (asked @ keys[row, HEAD].mT * mixer.head_dim**-0.5).float()
            seen, wanted = places.visible[here].to(scores.device), right[here].to(scores.device)
            scores = scores.masked_fill(~seen, -torch.inf)
            reached = scores.masked_fill(~wanted, -torch.inf).logsumexp(-1)
            total = total + (scores.logsumexp(-1) - reached).sum()
        return total
