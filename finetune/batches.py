"""Which rows an optimiser step learns from, as a function of the seed and the step alone.

A run that was stopped and goes on therefore sees what it would have seen, without any state but
the number of steps done. A row that turns out bad is left out of its step and written down.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from math import ceil

import numpy as np

from finetune.data import BadRow, Collator, Dataset, Sample, num_targets
from finetune.data.encode import decode_media, encode_sample, with_max_length
from finetune.guide import count_marks
from finetune.settings import FinetuneSettings
from omni.errors import OmniError
from omni.feature_cache import FeatureCache
from omni.inputs import OmniInputs
from omni.options import MediaOptions
from omni.processor import OmniProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one process runs in one optimiser step.

    Attributes:
        rows: Each runs through the model once and holds several samples, packed or padded.
        bad: Rows of the data that were left out, by position.
    """

    rows: list[OmniInputs]
    bad: dict[int, BadRow] = field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return sum(map(num_targets, self.rows))

    @property
    def num_marks(self) -> int:
        """Target tokens of which it is known where a picture shows them."""
        return sum(map(count_marks, self.rows))

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder reads."""
        return sum(row.num_tokens for row in self.rows)


def num_steps(count: int, settings: FinetuneSettings) -> int:
    """Optimiser steps of a run over `count` rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, ceil(settings.epochs * count / settings.samples_per_step))


def indices_of_step(step: int, count: int, settings: FinetuneSettings) -> list[int]:
    """Positions of the rows of a step; every pass over the data has an order of its own."""
    first = step * settings.samples_per_step
    places = [divmod(n, count) for n in range(first, first + settings.samples_per_step)]
    orders = {
        epoch: np.random.default_rng([settings.seed, epoch]).permutation(count)
        for epoch in {epoch for epoch, _ in places}
    }
    return [int(orders[epoch][place]) for epoch, place in places]


class Batches:
    """The steps of a run, made one ahead in a thread.

    Args:
        dataset: Rows, some of them bad.
        processor: Of the model.
        settings: Of the run.
        rank: This process, which takes every `world`-th row of a step.
        world: Processes.
        cache: Encodes media once; None leaves that to the model.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: OmniProcessor,
        settings: FinetuneSettings,
        *,
        rank: int = 0,
        world: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        self.dataset, self.settings = dataset, settings
        self.processor = with_max_length(processor, settings.max_length)
        self.options = MediaOptions(
            reduction=settings.reduction,
            max_tokens=settings.max_length if settings.reduce_to_fit else None,
        )
        self.collator = Collator(
            processor.ids.pad,
            max_length=settings.max_length,
            batching="pack" if settings.packing else "bucket",
        )
        self.rank, self.world = rank, world
        self.cache = cache

    def steps(self, first: int, stop: int) -> Iterator[Step]:
        """Make the steps from `first` to before `stop`."""
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self.make, step) for step in range(first, min(first + 1, stop))]
            for step in range(first, stop):
                if step + 1 < stop:
                    ahead.append(pool.submit(self.make, step + 1))
                yield ahead.pop(0).result()

    def make(self, step: int) -> Step:
        """Make one step: read, open, decode and lay out its rows."""
        indices = indices_of_step(step, len(self.dataset), self.settings)
        samples: list[OmniInputs] = []
        bad: dict[int, BadRow] = {}
        for index in islice(indices, self.rank, None, self.world):
            found = self.read(index)
            if isinstance(found, BadRow):
                bad[index] = found
            else:
                samples.append(found)
        return Step(rows=self.collator.batches(samples), bad=bad)

    def read(self, index: int) -> OmniInputs | BadRow:
        """Make one row ready for the model, or say what is wrong with it."""
        row = self.dataset[index]
        if isinstance(row, BadRow):
            return row
        guided = self.settings.guidance > 0
        inputs = ready(row, self.processor, self.options, guided=guided)
        if self.cache is None or isinstance(inputs, BadRow):
            return inputs
        return self.cache(inputs)


def ready(
    sample: Sample, processor: OmniProcessor, options: MediaOptions, *, guided: bool = False
) -> OmniInputs | BadRow:
    """Open, decode and lay out one sample; `guided` notes what its pictures show."""
    try:
        inputs = decode_media(encode_sample(sample, processor, options=options, guided=guided))
    except OmniError as error:
        return BadRow(origin=sample.origin, reason=str(error))
    if not num_targets(inputs):
        return BadRow(
            origin=sample.origin,
            reason="nothing to learn: no word of an assistant counts in the loss",
        )
    return inputs
