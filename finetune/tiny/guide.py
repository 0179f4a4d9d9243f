"""Tell attention where to read: on the character that comes next, and on the last one read.

A decoder that spells a line has to find each character's place in the picture. Left alone it takes
a hundred thousand lines to find out that there is a place to look for. In training the places are
known, so one head of the last attention layer is told to look at the next character, and one of the
first at the one before: guided attention, as in speech synthesis (Tachibana, Uenoyama and Aihara
2018), with known places instead of a diagonal. Nothing of it is left in the model.

    loss = -mean over characters of log( attention that falls on the tokens of the character )
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni.backbone.attention import Attention
from omni.inputs import IGNORE_INDEX, MediaItem, OmniInputs
from omni.model import OmniModel

HEAD = 0  # of the queries, and of the keys
FOLD = 2  # patches a side that make one token
REACH = 0.5  # columns on either side of a character that are right as well


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


class Sample(NamedTuple):
    """One conversation, and where the characters of its answer are."""

    inputs: OmniInputs
    edges: Sequence[Float[np.ndarray, " characters+1"]] | None
    """Of each picture, in which one line of the answer is printed, the shares of its width between
    the characters; None where they are not known."""


def find_places(
    samples: Sequence[Sample], offsets: Sequence[tuple[int, int]], length: int
) -> Places | None:
    """Find the characters of packed samples.

    Args:
        samples: What was packed.
        offsets: Row and first column of each.
        length: Columns of a row.

    Returns:
        Their places; None if no sample knows any.
    """
    found = [
        entry
        for sample, (row, start) in zip(samples, offsets, strict=True)
        if sample.edges is not None
        for entry in _characters(sample.inputs, sample.edges, row, start)
    ]
    if not found:
        return None
    positions = torch.arange(length)
    visible = torch.zeros(len(found), length, dtype=torch.bool)
    current = torch.zeros_like(visible)
    for i, (_, start, query, tokens) in enumerate(found):
        visible[i] = (start <= positions) & (positions <= query)
        current[i, tokens] = True
    same = [i > 0 and found[i][:2] == found[i - 1][:2] for i in range(len(found))]
    previous = torch.where(torch.tensor(same)[:, None], current.roll(1, 0), current)
    rows, queries = (torch.tensor([entry[i] for entry in found]) for i in (0, 2))
    return Places(rows, queries, visible, current, previous)


def _characters(
    inputs: OmniInputs, lines: Sequence[np.ndarray], row: int, start: int
) -> Iterator[tuple[int, int, int, list[int]]]:
    """Row, start of the sample, query and tokens of each character of an answer."""
    assert inputs.labels is not None
    (places,) = torch.nonzero(inputs.labels[0] != IGNORE_INDEX, as_tuple=True)
    if len(places) != sum(len(edges) for edges in lines):
        return  # letters of several bytes; a line's end, or the answer's, is the one label more
    first = 0
    for item, edges in zip(inputs.media, lines, strict=True):
        width = item.grid[2] // FOLD
        for i in range(len(edges) - 1):
            tokens = _tokens_between(item, edges[i] * width, edges[i + 1] * width)
            yield row, start, start + int(places[first + i]) - 1, [start + t for t in tokens]
        first += len(edges)


def _tokens_between(item: MediaItem, left: float, right: float) -> list[int]:
    """Positions of a picture's tokens that show what lies between two columns, or touch it."""
    height, width = item.grid[1] // FOLD, item.grid[2] // FOLD
    first = max(0, int(np.floor(left - REACH)))
    last = min(width - 1, int(np.ceil(right + REACH)) - 1)
    columns = range(min(first, last), last + 1)
    return [item.start + line * width + column for line in range(height) for column in columns]


class ReadingGuide:
    """Watches the first and the last attention layer of a model that trains.

    Args:
        model: With a hybrid decoder.
    """

    def __init__(self, model: OmniModel) -> None:
        layers = model.language_model.model.layers
        mixers = [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]
        self.mixers: tuple[Any, Any] = (mixers[0], mixers[-1])
        self.inputs: dict[nn.Module, Tensor] = {}
        for mixer in self.mixers:
            mixer.register_forward_pre_hook(self._remember)

    def _remember(self, mixer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inputs[mixer] = args[0]

    def loss(self, places: Places) -> Tensor:
        """Return the loss of the pass that has just been made."""
        first, last = self.mixers
        return 0.5 * (
            self._miss(first, places, places.previous) + self._miss(last, places, places.current)
        )

    def _miss(self, mixer: Any, places: Places, right: Tensor) -> Tensor:
        queries, keys, _ = mixer.project(self.inputs[mixer])
        scores = queries[:, HEAD] @ keys[:, HEAD].mT * mixer.head_dim**-0.5
        scores = scores[places.rows, places.queries].float()
        scores = scores.masked_fill(~places.visible, -torch.inf)
        found = scores.masked_fill(~right, -torch.inf).logsumexp(-1) - scores.logsumexp(-1)
        return -found.mean()
