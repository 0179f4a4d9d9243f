"""Read a whole data set as training would, and say what is in it and what is wrong with it."""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.data.dataset import Dataset
from finetune.data.encode import DEFAULTS, decode_media, encode_sample
from finetune.data.grouping import num_targets
from finetune.data.sample import BadRow, Origin
from omni import MediaOptions, OmniInputs, OmniProcessor
from omni.errors import OmniError

NUM_LONGEST = 10
KINDS = ("text", "image", "page", "video", "audio")


@dataclass(slots=True)
class TokenCount:
    """Tokens of one kind over the samples that have any.

    Attributes:
        total: Over all samples.
        samples: How many have any.
        most: In one sample.
        histogram: Upper bound of tokens in a sample, a power of two -> number of samples.
    """

    total: int = 0
    samples: int = 0
    most: int = 0
    histogram: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: int) -> None:
        """Count one sample; without tokens of the kind it does not count."""
        if tokens:
            self.total += tokens
            self.samples += 1
            self.most = max(self.most, tokens)
            self.histogram[1 << (tokens - 1).bit_length()] += 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the histogram as pairs of bound and count, ascending."""
        return {
            "total": self.total,
            "samples": self.samples,
            "most": self.most,
            "histogram": [list(pair) for pair in sorted(self.histogram.items())],
        }


@dataclass(slots=True)
class DataReport:
    """What is in a data set.

    Attributes:
        rows: All rows.
        bad: Those that cannot be trained on.
        tokens: By kind, and ``all`` for whole samples.
        loss_tokens: Tokens that the assistant says and the loss counts.
        reduced: Samples whose media the planner lowered to fit.
        longest: The longest samples, longest first: where they are and their tokens by kind.
    """

    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    tokens: dict[str, TokenCount] = field(
        default_factory=lambda: {kind: TokenCount() for kind in ("all", *KINDS)}
    )
    loss_tokens: int = 0
    reduced: int = 0
    longest: list[tuple[Origin, dict[str, int]]] = field(default_factory=list)

    @property
    def good(self) -> int:
        """Rows that can be trained on."""
        return self.rows - len(self.bad)

    def add(self, origin: Origin, inputs: OmniInputs) -> None:
        """Count one good sample."""
        counts = count_tokens(inputs)
        for kind, tokens in counts.items():
            self.tokens[kind].add(tokens)
        self.loss_tokens += num_targets(inputs)
        budget = inputs.budget
        self.reduced += budget is not None and budget.asked_tokens > inputs.num_tokens
        self.longest = heapq.nlargest(
            NUM_LONGEST, [*self.longest, (origin, counts)], key=lambda entry: entry[1]["all"]
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows": self.rows,
            "good": self.good,
            "bad": len(self.bad),
            "loss_tokens": self.loss_tokens,
            "reduced": self.reduced,
            "tokens": {kind: count.to_dict() for kind, count in self.tokens.items()},
            "longest": [
                {**origin.to_dict(), "tokens": _without_zeros(counts)}
                for origin, counts in self.longest
            ],
            "bad_rows": [row.to_dict() for row in self.bad],
        }


def check_dataset(
    dataset: Dataset,
    processor: OmniProcessor,
    *,
    options: MediaOptions = DEFAULTS,
    progress: Callable[[int], None] = lambda done: None,
) -> DataReport:
    """Read every row, open and decode all of its media, and count tokens.

    Args:
        dataset: What to check.
        processor: Of the model to train, limited to the rows' length (`with_max_length`).
        options: As training will have them.
        progress: Called with the number of rows done.
    """
    report = DataReport(rows=len(dataset))
    for index in range(len(dataset)):
        sample = dataset[index]
        if isinstance(sample, BadRow):
            report.bad.append(sample)
        else:
            try:
                inputs = encode_sample(sample, processor, options=options)
                decode_media(inputs, keep=False)
                report.add(sample.origin, inputs)
            except OmniError as error:
                report.bad.append(BadRow(origin=sample.origin, reason=str(error)))
        progress(index + 1)
    return report


def count_tokens(inputs: OmniInputs) -> dict[str, int]:
    """Tokens of a sample by kind; the labels between a video's frames are text."""
    counts = dict.fromkeys(("all", *KINDS), 0)
    counts["all"] = inputs.num_tokens
    for item in inputs.media:
        counts["page" if "page" in item.facts else item.modality] += item.num_tokens
    counts["text"] = counts["all"] - sum(counts[kind] for kind in KINDS)
    return counts


def _without_zeros(counts: Mapping[str, int]) -> dict[str, int]:
    return {kind: tokens for kind, tokens in counts.items() if tokens}
