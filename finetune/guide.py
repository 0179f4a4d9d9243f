"""Tell attention where to read: on what comes next in the answer, and on what was read last.

A decoder that spells what a picture shows has to find each character's place in it, and one that
says which word goes with a shape has to find the shape's time. Left alone it takes a hundred
thousand samples to find out that there is a place to look for. In training the places are often
known, so one head of the last attention layer is told to look at what the next token says, and one
of the first at what the token before said: guided attention, as in speech synthesis (Tachibana,
Uenoyama and Aihara 2018), with known places instead of a diagonal. A second head of both is told
where the prompt names what the answer repeats. Nothing of it is left in the model.

    loss = -mean over marks of log( attention that falls on the tokens of the place )

Marks are kept with the medium that shows the place (`MediaItem.facts`) and count from its first
token, so they hold wherever packing puts the sample.
"""

from collections.abc import Iterable, Sequence
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
SHOWN_HEAD, SAID_HEAD = 0, 1  # of the queries: for places of media, and of the prompt
FOLD = 2  # patches a side that make one token
REACH = 0.5  # columns on either side of a character that are right as well
GAP = 3  # tokens, at most, from one that is marked to the next of an answer; ": " lies between


class Span(NamedTuple):
    """A part of a medium: shares of its width, of its height, and of its duration."""

    left: float = 0.0
    right: float = 1.0
    top: float = 0.0
    bottom: float = 1.0
    start: float = 0.0
    end: float = 1.0


class Mark(NamedTuple):
    """A token of the answer that a medium shows or the prompt says: a character, or a word."""

    query: int
    """Where it is predicted, counted from the medium's first token."""
    tokens: tuple[int, ...]
    """The tokens that show it, counted likewise; those of the prompt may lie behind the medium."""
    head: int = SHOWN_HEAD
    """Of the queries: the one that looks there."""


class Places(NamedTuple):
    """Where the marks of a batch are, one entry for each head that predicts a token."""

    rows: Int[Tensor, " marks"]
    heads: Int[Tensor, " marks"]
    queries: Int[Tensor, " marks"]
    """Position at which the token is predicted."""
    visible: Bool[Tensor, "marks positions"]
    """Positions of the same sample, up to the query."""
    current: Bool[Tensor, "marks positions"]
    """Tokens of the medium that show it."""
    previous: Bool[Tensor, "marks positions"]
    """Tokens that show the one before; of the first of an answer, itself."""


def mark(inputs: OmniInputs, shown: Iterable[tuple[int, int, Span]]) -> OmniInputs:
    """Note which tokens of the answers a sample's media show, and where.

    Args:
        inputs: One row.
        shown: Of each token its position in the row, which medium shows it, and where.

    Raises:
        RequestError: A medium whose tokens were reduced.
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


def mark_prompt(inputs: OmniInputs, said: Iterable[tuple[int, Sequence[int]]]) -> OmniInputs:
    """Note which tokens of the answers repeat a word of the prompt, and where that stands.

    Args:
        inputs: One row, with a medium at least.
        said: Of each token its position in the row, and the positions of the same word before it.
    """
    said = list(said)
    if not said:
        return inputs
    item = inputs.media[0]  # any: places are counted from it
    marks = (
        Mark(position - 1 - item.start, tuple(p - item.start for p in places), SAID_HEAD)
        for position, places in said
    )
    marked = replace(item, facts={**item.facts, FACT: (*item.facts.get(FACT, ()), *marks)})
    return replace(inputs, media=[marked, *inputs.media[1:]])


def count_marks(inputs: OmniInputs) -> int:
    """Tokens of a batch whose place is known."""
    return sum(len(item.facts.get(FACT, ())) for item in inputs.media)


def find_places(inputs: OmniInputs) -> Places | None:
    """Find the marked tokens of a batch, packed or padded on the right.

    Returns:
        Their places; None if nothing is marked.
    """
    found = sorted(
        (
            (item.row, mark.head, item.start + mark.query, [item.start + t for t in mark.tokens])
            for item in inputs.media
            for mark in item.facts.get(FACT, ())
        ),
        key=lambda entry: entry[:3],
    )
    if not found:
        return None
    rows, heads, queries = (torch.tensor([entry[i] for entry in found]) for i in range(3))
    length = inputs.input_ids.shape[1]
    segments = inputs.segment_ids
    if segments is None:
        segments = torch.zeros_like(inputs.input_ids)
    own = segments.cpu()[rows, queries]
    visible = torch.arange(length) <= queries[:, None]
    visible &= segments.cpu()[rows] == own[:, None]
    current = torch.zeros_like(visible)
    for i, (*_, tokens) in enumerate(found):
        current[i, tokens] = True
    goes_on = torch.zeros(len(found), dtype=torch.bool)
    goes_on[1:] = (rows[1:] == rows[:-1]) & (own[1:] == own[:-1])
    goes_on[1:] &= (heads[1:] == heads[:-1]) & (queries[1:] <= queries[:-1] + GAP)
    previous = torch.where(goes_on[:, None], current.roll(1, 0), current)
    return Places(rows, heads, queries, visible, current, previous)


def is_whole(item: MediaItem) -> bool:
    """Whether a medium has a token for every place, so that these can be marked."""
    return item.num_tokens == _num_places(item)


def _num_places(item: MediaItem) -> int:
    if item.modality == "audio":
        return item.grid[0]
    steps, height, width = _places(item)
    return steps * height * width


def _places(item: MediaItem) -> tuple[int, int, int]:
    """Time steps, rows and columns of the tokens of a picture or a video, before reduction."""
    _, height, width = item.grid  # a step of a video is a tubelet of several frames
    return len(item.separators) + 1, height // FOLD, width // FOLD


def _tokens_in(item: MediaItem, span: Span) -> tuple[int, ...]:
    """A medium's tokens that show a part of it, or touch that at its sides."""
    if not is_whole(item):
        raise RequestError(
            f"{item.name}: expected all of its {_num_places(item)} tokens, to say what they show; "
            f"found {item.num_tokens}. Leave out the reduction of {item.modality}."
        )
    if item.modality == "audio":
        return tuple(_cells(span.start, span.end, item.num_tokens, REACH))
    steps, height, width = _places(item)
    columns = _cells(span.left, span.right, width, REACH)
    lines = _cells(span.top, span.bottom, height, 0.0)  # the rows of print above are near
    times = _cells(span.start, span.end, steps, 0.0)
    _, offsets = item.lay([height * width] * steps)  # where separators leave them
    return tuple(
        offsets[(time * height + line) * width + column]
        for time in times
        for line in lines
        for column in columns
    )


def _cells(start: float, end: float, count: int, reach: float) -> range:
    """Columns, rows or steps of tokens between two shares of a side; one at least."""
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
        """Return what the pass that has just been made missed, summed over the marks."""
        first, last = self.mixers
        return 0.5 * (
            self._miss(first, places, places.previous) + self._miss(last, places, places.current)
        )

    def _miss(self, mixer: Any, places: Places, right: Tensor) -> Tensor:
        queries, keys, _ = mixer.project(self.inputs[mixer])
        total = queries.new_zeros((), dtype=torch.float32)
        sharing = queries.shape[1] // keys.shape[1]  # heads that share keys
        for row, head in torch.stack([places.rows, places.heads]).unique(dim=1).T.tolist():
            here = (places.rows == row) & (places.heads == head)
            asked = queries[row, head, places.queries[here].to(queries.device)]
            scores = (asked @ keys[row, head // sharing].mT * mixer.head_dim**-0.5).float()
            seen, wanted = places.visible[here].to(scores.device), right[here].to(scores.device)
            scores = scores.masked_fill(~seen, -torch.inf)
            reached = scores.masked_fill(~wanted, -torch.inf).logsumexp(-1)
            total = total + (scores.logsumexp(-1) - reached).sum()
        return total
