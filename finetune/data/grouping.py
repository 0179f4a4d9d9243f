"""Which samples share a row, and which rows a batch; from their lengths alone.

pack      samples stand one after another in a row and are kept apart by segment ids
bucket    one sample a row; rows of similar length share a batch, padded to the longest
"""

from collections.abc import Sequence
from typing import Literal

from omni.inputs import IGNORE_INDEX, OmniInputs, collate, pack

Batching = Literal["pack", "bucket"]
Rows = list[list[int]]  # a batch: the samples of each row


def group_lengths(
    lengths: Sequence[int], *, max_length: int, rows: int = 1, batching: Batching = "pack"
) -> list[Rows]:
    """Divide samples into batches; the same lengths always give the same batches.

    Args:
        lengths: Tokens of each sample, none above `max_length`.
        max_length: Tokens of a row.
        rows: Rows of a packed batch; a padded one may have more that are shorter.
        batching: See the module.

    Returns:
        Batches of at most ``rows * max_length`` tokens, padding included. Every sample is in one.

    Raises:
        ValueError: A sample is longer than a row.
    """
    if too_long := [length for length in lengths if length > max_length]:
        raise ValueError(f"found a sample of {too_long[0]} tokens, a row holds {max_length}")
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if batching == "pack":
        packed = _best_fit(lengths, longest_first, max_length)
        return [packed[i : i + rows] for i in range(0, len(packed), rows)]
    batches: list[Rows] = []
    for index in longest_first:
        # The first row is the longest, so all rows get its length.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0][0]] <= rows * max_length:
            batches[-1].append([index])
        else:
            batches.append([[index]])
    return batches


def _best_fit(lengths: Sequence[int], longest_first: Sequence[int], max_length: int) -> Rows:
    """Best-fit decreasing: each sample goes where it leaves the least room."""
    rows: Rows = []
    room: list[int] = []
    for index in longest_first:
        open_rows = [i for i, left in enumerate(room) if left >= lengths[index]]
        if open_rows:
            row = min(open_rows, key=lambda i: room[i])
        else:
            row = len(rows)
            rows.append([])
            room.append(max_length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


class Collator:
    """Samples of `encode_sample` -> one batch for ``OmniModel.forward``.

    ``model(**collator(samples))`` trains in any loop; for ``transformers.Trainer``, which wants a
    mapping, pass ``data_collator=lambda samples: dict(collator(samples))``.

    Args:
        pad_token_id: Fills the ends of short rows, masked; ``processor.ids.pad``.
        max_length: Tokens of a row.
        batching: ``pack`` needs the hybrid backbone, ``bucket`` any.
    """

    def __init__(self, pad_token_id: int, *, max_length: int, batching: Batching = "pack") -> None:
        self.pad_token_id = pad_token_id
        self.max_length = max_length
        self.batching = batching

    def __call__(self, samples: Sequence[OmniInputs]) -> OmniInputs:
        """Put samples of one row each into one batch, in as few rows as they need."""
        if self.batching == "bucket":
            return self.join([[sample] for sample in samples])
        lengths = [sample.num_tokens for sample in samples]
        longest_first = sorted(range(len(samples)), key=lambda i: -lengths[i])
        rows = _best_fit(lengths, longest_first, max(self.max_length, *lengths))
        return self.join([[samples[i] for i in row] for row in rows])

    def batches(self, samples: Sequence[OmniInputs]) -> list[OmniInputs]:
        """Divide samples into batches of at most `max_length` tokens, padding included."""
        groups = group_lengths(
            [sample.num_tokens for sample in samples],
            max_length=self.max_length,
            batching=self.batching,
        )
        return [self.join([[samples[i] for i in row] for row in group]) for group in groups]

    def join(self, rows: Sequence[Sequence[OmniInputs]]) -> OmniInputs:
        """Put samples into the rows that were chosen for them."""
        packed = [row[0] if len(row) == 1 else pack(row) for row in rows]
        return collate(packed, pad_token_id=self.pad_token_id, padding_side="right")


def num_targets(inputs: OmniInputs) -> int:
    """Tokens that count in the loss: labels are shifted, so the first never does."""
    assert inputs.labels is not None
    return int((inputs.labels[:, 1:] != IGNORE_INDEX).sum())
