"""A row's own `shown`: which picture shows what the answer says, for `finetune.guide`.

    "shown": [{"medium": 0, "text": "NO.25", "from": 0.1, "to": 0.4}, ...]

The texts stand in the last answer in this order; a text that comes back is the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from finetune.data.sample import RowError, Shown
from finetune.guide import Span, mark
from omni.inputs import IGNORE_INDEX, OmniInputs

KEY = "shown"
KEYS = ("medium", "text", "from", "to")


class Spot(NamedTuple):
    """A shown text, found in the answer."""

    shown: Shown
    start: int
    """Its first character there."""


def read_shown(row: Mapping[str, Any]) -> tuple[Shown, ...]:
    """Read and check what a row says that its pictures show.

    Args:
        row: May have `KEY`: a list of objects with `KEYS`, the last two optional.

    Raises:
        RowError: Anything else.
    """
    entries = row.get(KEY) or ()
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise RowError(f"{KEY}: found {entries!r:.60}, expected a list of objects")
    return tuple(_read(entry, number) for number, entry in enumerate(entries, start=1))


def _read(entry: object, number: int) -> Shown:
    if not isinstance(entry, Mapping) or set(entry) - set(KEYS):
        raise RowError(f"{KEY} {number}: found {entry!r:.60}, expected {', '.join(KEYS)}")
    medium, text = entry.get("medium"), entry.get("text")
    left, right = entry.get("from", 0.0), entry.get("to", 1.0)
    if not isinstance(medium, int) or medium < 0 or not isinstance(text, str) or not text:
        raise RowError(
            f"{KEY} {number}: found medium {medium!r} and text {text!r:.40}, expected a number "
            "from 0 and what it shows"
        )
    if not all(isinstance(x, int | float) for x in (left, right)) or not 0 <= left < right <= 1:
        raise RowError(
            f"{KEY} {number}: found from {left!r} to {right!r}, expected shares of the width, "
            "0 <= from < to <= 1"
        )
    return Shown(medium, text, float(left), float(right))


def mark_shown(
    inputs: OmniInputs,
    shown: Sequence[Shown],
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
) -> OmniInputs:
    """Note at the pictures which tokens of the answer they show.

    Args:
        inputs: One row, whose last labelled stretch is the answer and its end token.
        shown: What is shown, in the order of the answer.
        answer: The last assistant turn.
        tokenizer: Of the model, with offsets ("fast").

    Raises:
        RowError: A text that the answer does not hold, a medium that is not there.
        RequestError: A medium whose tokens do not show columns.
    """
    if not shown:
        return inputs
    assert inputs.labels is not None
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labelled = torch.nonzero(inputs.labels[0] != IGNORE_INDEX).flatten()[-len(ids) - 1 : -1]
    if inputs.input_ids[0, labelled].tolist() != ids:
        raise RowError(f"{KEY}: expected an answer of words alone as the last turn that is learned")
    marks = []
    for spot in _find(shown, answer, len(inputs.media)):
        found, item = spot.shown, inputs.media[spot.shown.medium]
        if item.modality != "image":
            raise RowError(
                f"{KEY}: medium {found.medium} is {item.modality}; expected a picture or a page, "
                "which has columns"
            )
        width = (found.right - found.left) / len(found.text)
        end = spot.start + len(found.text)
        for position, (first, last) in zip(labelled.tolist(), offsets, strict=True):
            if spot.start <= first < last <= end:
                columns = Span(
                    found.left + width * (first - spot.start),
                    found.left + width * (last - spot.start),
                )
                marks.append((position, found.medium, columns))
    return mark(inputs, marks)


def _find(shown: Sequence[Shown], answer: str, num_media: int) -> Iterator[Spot]:
    place = 0
    for number, each in enumerate(shown, start=1):
        start = answer.find(each.text, place)
        if start < 0 or each.medium >= num_media:
            raise RowError(
                f"{KEY} {number}: found {each.text!r:.40} of medium {each.medium}; expected texts "
                f"of the last answer in its order, and one of its {num_media} media"
            )
        yield Spot(each, start)
        place = start + len(each.text)
