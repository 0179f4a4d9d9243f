"""The two honest baselines: reducers that do not look at the data.

A method that reads the features should beat both at the same rate; otherwise it is not
worth its time.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.base import Reducer, ReductionStream, Stage, check_rate, check_rows, count_kept
from token_reduction.layout import TokenLayout, TokenShape


class _Blind(Reducer):
    """Keeps tokens chosen from their number alone."""

    stage: Stage = "after_projector"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with num_tokens * (1 - rate), a half rounded down, at least 1."""
        num_kept = count_kept(shape.num_tokens, self.rate)
        return TokenShape(modality=shape.modality, grid=shape.grid, num_tokens=num_kept)

    @abstractmethod
    def choose(self, num_tokens: int, num_kept: int) -> Int[Tensor, " kept"]:
        """Ascending indices of the tokens to keep."""

    def stream(self, layout: TokenLayout) -> ReductionStream:
        """Holds kept rows only."""
        num_kept = self.num_tokens(layout.shape)
        return _SelectionStream(self.choose(layout.shape.num_tokens, num_kept), layout)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched."""
        kept = self.choose(len(features), self.num_tokens(layout.shape))
        return features[kept.to(features.device)], layout.select(kept)


class _SelectionStream(ReductionStream):
    """Picks rows that were chosen before the first one came."""

    def __init__(self, kept: Int[Tensor, " kept"], layout: TokenLayout) -> None:
        self.kept, self.layout = kept, layout
        self.rows: list[Tensor] = []
        self.num_seen = 0

    @property
    def num_held(self) -> int:
        """Kept rows that came."""
        return sum(map(len, self.rows))

    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Take what is kept of the piece."""
        after = self.num_seen + len(features)
        here = self.kept[(self.kept >= self.num_seen) & (self.kept < after)] - self.num_seen
        if len(here):
            self.rows.append(features[here.to(features.device)])
        self.num_seen = after

    def finish(self) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Join what was kept."""
        check_rows(self.num_seen, self.layout)
        features = torch.cat(self.rows)
        self.rows.clear()
        return features, self.layout.select(self.kept)


class Uniform(_Blind):
    """Keeps evenly spaced tokens: the middle one of each of K equal stretches.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    def choose(self, num_tokens: int, num_kept: int) -> Int[Tensor, " kept"]:
        """Index floor((2k + 1) * M / 2K) for k < K, in whole numbers."""
        return (2 * torch.arange(num_kept) + 1) * num_tokens // (2 * num_kept)


class Random(_Blind):
    """Keeps a random subset that depends on the seed and the number of tokens, nothing else.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).
        seed: Same seed, same subset.

    Raises:
        ValueError: If `rate` is outside its range.
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__(rate)
        self.seed = seed

    def choose(self, num_tokens: int, num_kept: int) -> Int[Tensor, " kept"]:
        """The first K of a permutation, put in order."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(num_tokens, generator=generator)[:num_kept].sort().values
