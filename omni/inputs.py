"""What the processor hands to the model: token ids, and media with a place in them.

A media item occupies one *block* of a row of ``input_ids``. The block is a run of placeholder
tokens, interrupted by separators when the item has time steps (a video's tubelets):

    placeholders of step 0 | separator 1 | placeholders of step 1 | separator 2 | ...

A separator is ``</img>``, the label of the next tubelet, ``<img>``. How many placeholders each
step has is known only after reduction; how long the whole block is, is known before anything
runs. So a block never changes its length, and labels, masks and segments stay aligned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from omni.budget import BudgetReport
from omni.errors import AlignmentError

IGNORE_INDEX = -100  # label of a token that takes no part in the loss (PyTorch's default)

Modality = Literal["image", "video", "audio"]


class Window(NamedTuple):
    """One encoder pass worth of a media item."""

    rows: Tensor  # image, video: (patches, patch values); audio: (mel frames, mel bins)
    num_valid: int  # rows that are real; the rest is padding (audio)
    num_tokens: int  # tower outputs that count: patches, tubelet patches, audio tokens
    is_hidden: bool = False  # rows are what the tower gave, not what it reads


class LazyWindows:
    """Windows that are made anew by each iteration, so that a long medium is never all in memory.

    Args:
        make: Returns a fresh iterator over the windows.
    """

    def __init__(self, make: Callable[[], Iterator[Window]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Window]:
        """Start again from the first window."""
        return self._make()


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaItem:
    """One image, page, clip or recording, ready for its encoder, with its block in a row.

    Attributes:
        modality: Which encoder reads it.
        windows: Encoder inputs, iterable more than once.
        grid: Source cells ``(t, h, w)``: patches of one image, of each frame, or audio tokens.
        time_spans: Seconds (start, end) of each of the ``t`` source steps; None for stills.
        reduction: Spec string of the request's reducers. Those that choose frames have done so:
            ``windows`` and ``grid`` have the kept ones.
        token_id: Placeholder id.
        row: Row of ``input_ids``.
        start: Column of the block's first placeholder.
        num_tokens: Placeholders in the block, after reduction.
        separators: Ids between step ``i`` and ``i + 1``; empty when the block is one run.
        name: What to call it in messages and in the ledger.
        facts: What the gateway knows of the source: pixels, seconds, frames.
        cues: Measures numbers about each source cell, by name (``energy``); called only when the
            reducer wants them.
        envelope: Lowest and highest sample of so many equal stretches of a recording, for drawing.
        unsampled: Seconds (start, end) of the source's frames that sampling left out.
        chosen: Settings that it was planned with: grid, frames, dpi, reduction.
        asked: Those of them that a budget lowered, as they were asked for.
        window_rows: Rows of its largest window, for estimates of memory.
    """

    modality: Modality
    windows: Iterable[Window]
    grid: tuple[int, int, int]
    time_spans: tuple[tuple[float, float], ...] | None = None
    reduction: str = "identity"
    token_id: int
    row: int = 0
    start: int = 0
    num_tokens: int
    separators: tuple[tuple[int, ...], ...] = ()
    name: str = "media"
    facts: Mapping[str, Any] = field(default_factory=dict)
    cues: Callable[[], Mapping[str, Tensor]] | None = None
    envelope: Callable[[int], Tensor] | None = None
    unsampled: tuple[tuple[float, float], ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    window_rows: int = 0

    @property
    def block_length(self) -> int:
        """Tokens from the first placeholder to the last, separators included."""
        return self.num_tokens + sum(map(len, self.separators))

    def lay(self, tokens_per_step: Sequence[int]) -> tuple[list[int], list[int]]:
        """Lay the block for the counts that reduction left.

        Args:
            tokens_per_step: Kept tokens of each time step.

        Returns:
            The block's ids, and the offsets of its placeholders, in order.

        Raises:
            AlignmentError: The counts do not fill the planned block.
        """
        counts = list(tokens_per_step) if self.separators else [sum(tokens_per_step)]
        if sum(counts) != self.num_tokens or len(counts) != len(self.separators) + 1:
            raise AlignmentError(
                f"{self.name}: the encoder and its reduction {self.reduction!r} gave "
                f"{sum(counts)} token(s) in {len(counts)} step(s), but the prompt has "
                f"{self.num_tokens} placeholder(s) in {len(self.separators) + 1} step(s). Build "
                "the prompt and the features with the same processor settings."
            )
        ids: list[int] = []
        offsets: list[int] = []
        for step, count in enumerate(counts):
            if step:
                ids.extend(self.separators[step - 1])
            offsets.extend(range(len(ids), len(ids) + count))
            ids.extend([self.token_id] * count)
        return ids, offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniInputs:
    """A batch of prompts with all of their media. ``model(**inputs)`` runs it.

    Attributes:
        input_ids: Token ids, with placeholders where media go.
        attention_mask: True where a token is real.
        labels: Targets, -100 where ignored; None at inference. The model shifts them.
        segment_ids: Which packed sample a token belongs to; None when a row is one sample.
        media: Items of all rows, in any order; each knows its row and column.
        budget: How one request was made to fit; None without a budget, and in batches.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"] | None = None
    segment_ids: Int[Tensor, "batch seq"] | None = None
    media: list[MediaItem] = field(default_factory=list)
    budget: BudgetReport | None = None

    def keys(self) -> list[str]:
        """Names of the model arguments that are set, so that ``model(**inputs)`` works."""
        names = ["input_ids", "attention_mask", "labels", "segment_ids", "media"]
        return [name for name in names if getattr(self, name) is not None]

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)

    @property
    def num_tokens(self) -> int:
        """Real tokens of the batch."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "OmniInputs":
        """Move the token tensors; media windows follow one at a time when they are encoded."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=move(self.labels),
            segment_ids=move(self.segment_ids),
        )


def collate(
    samples: Sequence[OmniInputs],
    *,
    pad_token_id: int,
    padding_side: Literal["left", "right"],
    multiple_of: int = 1,
) -> OmniInputs:
    """Pad samples to one batch, one row each.

    Args:
        samples: Batches of any number of rows.
        pad_token_id: Id that fills the padding; it is masked everywhere.
        padding_side: ``right`` for training, ``left`` to generate.
        multiple_of: Pad on to a multiple of so many tokens, so that few lengths occur.

    Returns:
        One batch; its media know their new rows and columns.
    """
    length = max(sample.input_ids.shape[1] for sample in samples)
    length = -(-length // multiple_of) * multiple_of
    rows = sum(sample.input_ids.shape[0] for sample in samples)
    input_ids = torch.full((rows, length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((rows, length), dtype=torch.bool)
    has_labels = any(sample.labels is not None for sample in samples)
    has_segments = any(sample.segment_ids is not None for sample in samples)
    labels = torch.full((rows, length), IGNORE_INDEX) if has_labels else None
    segment_ids = torch.zeros((rows, length), dtype=torch.long) if has_segments else None
    media: list[MediaItem] = []
    top = 0
    for sample in samples:
        count, own = sample.input_ids.shape
        left = length - own if padding_side == "left" else 0
        place = (slice(top, top + count), slice(left, left + own))
        input_ids[place] = sample.input_ids
        attention_mask[place] = sample.attention_mask
        if labels is not None and sample.labels is not None:
            labels[place] = sample.labels
        if segment_ids is not None and sample.segment_ids is not None:
            segment_ids[place] = sample.segment_ids
        media += [replace(m, row=m.row + top, start=m.start + left) for m in sample.media]
        top += count
    return OmniInputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        segment_ids=segment_ids,
        media=media,
    )


def pack(samples: Sequence[OmniInputs]) -> OmniInputs:
    """Put samples one after another into one row; ``segment_ids`` keep them apart.

    Args:
        samples: Batches of one row without padding; a row that is packed already counts as its
            samples.

    Returns:
        One row. The first label of each sample is ignored, since its predecessor is another sample.

    Raises:
        AlignmentError: A sample has several rows or padding.
    """
    media: list[MediaItem] = []
    labels: list[Tensor] = []
    segments: list[Tensor] = []
    start = num_segments = 0
    for sample in samples:
        if sample.input_ids.shape[0] != 1 or not bool(sample.attention_mask.all()):
            raise AlignmentError(
                f"Packing expects samples of one row without padding, found shape "
                f"{tuple(sample.input_ids.shape)} with {sample.num_tokens} real token(s)."
            )
        own = sample.input_ids.shape[1]
        media += [replace(m, start=m.start + start) for m in sample.media]
        row = torch.full((1, own), IGNORE_INDEX) if sample.labels is None else sample.labels.clone()
        row[:, 0] = IGNORE_INDEX
        labels.append(row)
        inside = sample.segment_ids
        segments.append((torch.zeros(1, own).long() if inside is None else inside) + num_segments)
        num_segments = int(segments[-1].max()) + 1
        start += own
    input_ids = torch.cat([sample.input_ids for sample in samples], dim=1)
    return OmniInputs(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
        labels=torch.cat(labels, dim=1) if any(s.labels is not None for s in samples) else None,
        segment_ids=torch.cat(segments, dim=1),
        media=media,
    )
