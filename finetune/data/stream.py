"""Batches without end, in an order that one seed decides and that can be taken up anywhere.

1. An epoch is a permutation of the rows. Of it a window is opened and measured at a time: as many
   rows as fill some batches.
2. The window's samples are grouped into batches (`finetune.data.grouping`), in random order.
3. A batch's media are decoded just before it is given out.

A row that fails in 1 or 3 is recorded and left out. Nothing here draws from global random state,
and what a batch holds depends on seed, rows and settings alone: not on earlier batches, on the
number of processes, or on where a run was interrupted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from finetune.data.dataset import Dataset
from finetune.data.encode import DEFAULTS, decode_media, encode_sample, with_max_length
from finetune.data.grouping import Batching, Collator, Rows, count_loss_tokens, group_lengths
from finetune.data.sample import BadRow, Origin
from omni import MediaOptions, OmniInputs, OmniProcessor
from omni.errors import OmniError, RequestError
from omni.inputs import IGNORE_INDEX

LISTED = 20  # bad rows that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How samples become batches.

    Attributes:
        max_length: Tokens of a row, and so of the longest sample; more needs more memory.
        rows: Rows of a batch; a padded batch may have more that are shorter.
        batching: ``pack`` or ``bucket``; see `finetune.data.grouping`.
        reduce_to_fit: Let the planner lower the media of a sample that is too long, instead of
            reporting it; what the row or the run sets itself is kept.
        window: Batches for which rows are opened at a time: more wastes less room at the ends of
            rows and mixes better, and holds more opened pictures and recordings.
        shuffle: Draw the order anew for each epoch.
        seed: Decides every order.
        max_bad_share: Share of the data's rows that may be bad before the run stops.
    """

    max_length: int = 4096
    rows: int = 1
    batching: Batching = "pack"
    reduce_to_fit: bool = False
    window: int = 16
    shuffle: bool = True
    seed: int = 0
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_length", "rows", "window"):
            if getattr(self, name) < 1:
                raise RequestError(f"found {name}={getattr(self, name)}, expected at least 1")
        if self.batching not in ("pack", "bucket"):
            raise RequestError(f"found batching={self.batching!r}, expected 'pack' or 'bucket'")
        if not 0 <= self.max_bad_share <= 1:
            raise RequestError(f"found max_bad_share={self.max_bad_share}, expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands in the data: all that a checkpoint must hold of it.

    Attributes:
        epoch: Passes over the data that are behind it.
        row: Rows of the epoch's order that are behind its present window.
        batch: Batch of the window which comes next.
    """

    epoch: int = 0
    row: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch.

    Attributes:
        inputs: For ``model(**inputs)``; media are decoded, so it may come from another process.
        origins: The rows in it.
        loss_tokens: Targets; 0 in a filler, which keeps processes in step and teaches nothing.
        bad: Rows that were found bad since the last batch.
        epoch: Pass over the data that it belongs to, from 0.
        next: Where to go on after it, in this and in every other process.
    """

    inputs: OmniInputs
    origins: tuple[Origin, ...]
    loss_tokens: int
    bad: tuple[BadRow, ...]
    epoch: int
    next: Position


class BadRows:
    """The rows that were left out; too many of them stop the run.

    Args:
        limit: Most rows.
        rows: Those that are known already, of a run that is resumed.
    """

    def __init__(self, limit: float, rows: Iterable[BadRow] = ()) -> None:
        self.limit = limit
        self._rows: dict[Origin, BadRow] = {row.origin: row for row in rows}
        self._new: list[BadRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._rows.values())

    def add(self, row: BadRow) -> None:
        """Record a row; one that is known already counts once.

        Raises:
            RequestError: There are more than the limit; lists them.
        """
        if row.origin in self._rows:
            return
        self._rows[row.origin] = row
        self._new.append(row)
        if len(self) > self.limit:
            listed = "; ".join(map(str, list(self)[:LISTED]))
            more = f"; and {len(self) - LISTED} more" if len(self) > LISTED else ""
            raise RequestError(
                f"found {len(self)} bad rows, of which {int(self.limit)} are allowed "
                f"(max_bad_share): {listed}{more}. `omni finetune check` lists all of them"
            )

    def take_new(self) -> tuple[BadRow, ...]:
        """Those that came since the last call."""
        new, self._new = tuple(self._new), []
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A batch whose samples are opened but not decoded."""

    rows: list[list[tuple[Origin, OmniInputs]]] = field(default_factory=list)
    epoch: int
    next: Position


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Endless batches of a data set.

    Several processes take turns: of every `num_processes` batches each gets one, so that a step
    over all of them sees what one process sees in as many batches. ``DataLoader(stream,
    batch_size=None, num_workers=1)`` prepares batches in a process of its own.

    Args:
        dataset: Rows.
        processor: Of the model.
        config: Lengths and order.
        options: Sampling and reduction for rows that set none.
        start: Where to go on.
        bad: Rows that a run which is resumed has found bad.
        process: Number of this process.
        num_processes: How many there are.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: OmniProcessor,
        config: BatchConfig,
        *,
        options: MediaOptions = DEFAULTS,
        start: Position = Position(),
        bad: Iterable[BadRow] = (),
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.processor = with_max_length(processor, config.max_length)
        self.options = (
            replace(options, max_tokens=self.processor.settings.max_model_len)
            if config.reduce_to_fit
            else options
        )
        self.start = start
        self.bad = BadRows(config.max_bad_share * len(dataset), bad)
        self.process, self.num_processes = process, num_processes
        self.collator = Collator(
            processor.ids.pad, max_length=config.max_length, batching=config.batching
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of the batches, from `start` on.

        Raises:
            RequestError: Too many rows are bad, an epoch has no row that is good, or several workers
                of a DataLoader would each give every batch.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RequestError(
                f"found {worker.num_workers} workers of a DataLoader; expected num_workers=1, since "
                "each gives all batches"
            )
        group: list[_Planned] = []
        epoch = self.start.epoch
        for planned in self._planned():
            if planned.epoch != epoch and group:  # what is left of an epoch is a step of its own
                yield self._finish(group)
                group = []
            epoch = planned.epoch
            group.append(planned)
            if len(group) == self.num_processes:
                yield self._finish(group)
                group = []

    def _finish(self, group: list[_Planned]) -> Batch:
        """Decode and join this process's batch; without one, or if it is all bad, a filler."""
        own = group[self.process].rows if self.process < len(group) else []
        rows, origins = [], []
        for planned_row in own:
            row = []
            for origin, inputs in planned_row:
                try:
                    row.append(decode_media(inputs))
                    origins.append(origin)
                except OmniError as error:
                    self.bad.add(BadRow(origin=origin, reason=str(error)))
            if row:
                rows.append(row)
        inputs = self.collator.join(rows) if rows else _filler(self.collator.pad_token_id)
        return Batch(
            inputs=inputs,
            origins=tuple(origins),
            loss_tokens=count_loss_tokens(inputs),
            bad=self.bad.take_new(),
            epoch=group[0].epoch,
            next=group[-1].next,
        )

    def _planned(self) -> Iterator[_Planned]:
        """All batches of all processes, in order."""
        at = self.start
        while True:
            order = self._order(at.epoch)
            found_any = at != Position(epoch=at.epoch)
            first, skipped = at.row, at.batch
            while first < len(order):
                samples, stop = self._open(order, first)
                batches = self._group(samples, at.epoch, first)
                for number in range(skipped, len(batches)):
                    found_any = True
                    after = Position(epoch=at.epoch, row=first, batch=number + 1)
                    if number + 1 == len(batches):
                        after = Position(epoch=at.epoch, row=stop)
                    rows = [[samples[i] for i in row] for row in batches[number]]
                    yield _Planned(rows=rows, epoch=at.epoch, next=after)
                first, skipped = stop, 0
            if not found_any:
                raise RequestError(
                    f"found no row to train on among {len(self.dataset)}: "
                    + "; ".join(map(str, list(self.bad)[:LISTED]))
                )
            at = Position(epoch=at.epoch + 1)

    def _order(self, epoch: int) -> list[int]:
        if not self.config.shuffle:
            return list(range(len(self.dataset)))
        rng = np.random.default_rng([self.config.seed, epoch])
        return [int(i) for i in rng.permutation(len(self.dataset))]

    def _open(self, order: list[int], first: int) -> tuple[list[tuple[Origin, OmniInputs]], int]:
        """The good rows of the window that starts at `first`, and where the next one starts."""
        room = self.config.window * self.config.rows * self.config.max_length
        found = []
        for position in range(first, len(order)):
            sample = self.dataset[order[position]]
            if isinstance(sample, BadRow):
                self.bad.add(sample)
                continue
            try:
                inputs = encode_sample(sample, self.processor, options=self.options)
            except OmniError as error:
                self.bad.add(BadRow(origin=sample.origin, reason=str(error)))
                continue
            found.append((sample.origin, inputs))
            room -= inputs.num_tokens
            if room <= 0:
                return found, position + 1
        return found, len(order)

    def _group(
        self, samples: list[tuple[Origin, OmniInputs]], epoch: int, first: int
    ) -> list[Rows]:
        """The window's batches; longest first would teach long samples first."""
        batches = group_lengths(
            [inputs.num_tokens for _, inputs in samples],
            max_length=self.config.max_length,
            rows=self.config.rows,
            batching=self.config.batching,
        )
        if not self.config.shuffle:
            return batches
        rng = np.random.default_rng([self.config.seed, epoch, first])
        return [batches[int(i)] for i in rng.permutation(len(batches))]


def _filler(pad_token_id: int) -> OmniInputs:
    """The shortest batch that the model runs; without targets its loss is zero."""
    input_ids = torch.full((1, 2), pad_token_id)
    return OmniInputs(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
        labels=torch.full_like(input_ids, IGNORE_INDEX),
    )
