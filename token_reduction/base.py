"""The one contract of all reducers, and how they are chained.

A reducer maps the features and layout of one media item to fewer features and their
layout. How many come out follows from the shape alone, never from the data: whoever builds
a prompt or plans memory asks `plan` and gets what `forward` will give. Batches are the
caller's loop over items, so no item can touch another.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from token_reduction.layout import TokenLayout, TokenShape

# Where a reducer sits, in the order in which data passes.
Stage = Literal["frames", "tower", "before_projector", "after_projector"]
STAGES: tuple[Stage, ...] = ("frames", "tower", "before_projector", "after_projector")


class ReductionStream(ABC):
    """One media item on its way through a reducer, piece by piece.

    However the rows are cut into pieces, the result is that of one call with all of them.
    """

    @property
    @abstractmethod
    def num_held(self) -> int:
        """Rows held at present: what the stream costs in memory."""

    @abstractmethod
    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Take the next rows, in the order of the item's layout.

        Raises:
            ValueError: If more rows come than the layout has tokens; at the latest, `finish`
                raises it.
        """

    @abstractmethod
    def finish(self) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """The reduced features and their layout, after the last piece.

        Raises:
            ValueError: If fewer or more rows came than the layout has tokens.
        """


class Reducer(nn.Module, ABC):
    """Maps (features, layout) of one media item to fewer features and their layout.

    A subclass says where it sits (`stage`), how many tokens come out (`plan`) and how
    (`reduce`). Calling the reducer runs three steps:

    1. check that features and layout agree,
    2. `reduce`,
    3. check that the result is what `plan` promised.
    """

    stage: Stage
    cues: tuple[str, ...] = ()
    """Names of the layout's cues without which `reduce` refuses."""

    @abstractmethod
    def plan(self, shape: TokenShape) -> TokenShape:
        """The exact shape that comes out for an item of shape `shape`.

        Raises:
            ValueError: If this reducer cannot take such an item.
        """

    @abstractmethod
    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Do the work; `forward` wraps it in checks."""

    def num_tokens(self, shape: TokenShape) -> int:
        """The exact number of tokens that come out for an item of shape `shape`."""
        return self.plan(shape).num_tokens

    def output_dim(self, dim: int) -> int:
        """Width of a row that comes out when rows of width `dim` go in."""
        return dim

    def part(self, stage: Stage) -> "Reducer":
        """What of this reducer runs at `stage`: itself, or nothing (a chain without members)."""
        return self if self.stage == stage else Chain()

    def bind(self, weights: Mapping[str, nn.Module]) -> "Reducer":
        """Take the trained modules that this reducer needs; most need none.

        Args:
            weights: Modules by name: what the model has for one modality.
        """
        return self

    def stream(self, layout: TokenLayout) -> ReductionStream:
        """Begin to reduce an item whose rows come piece by piece.

        Unless a reducer knows better, the pieces are kept until the last one is there.

        Args:
            layout: What all the rows will be.
        """
        return _Collected(self, layout)

    def forward(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Reduce one media item.

        Args:
            features: One row per token, in the order of `layout.cells`, on any device.
            layout: What the rows are.

        Returns:
            The reduced features and their layout; its shape equals `plan(layout.shape)`.

        Raises:
            ValueError: If features and layout disagree, or this reducer cannot take the item.
        """
        check_rows(len(features), layout)
        promised = self.plan(layout.shape)
        reduced, reduced_layout = self.reduce(features, layout)
        found = (len(reduced), reduced_layout.shape)
        if found != (promised.num_tokens, promised):
            raise ValueError(
                f"{type(self).__name__} gave {found[0]} row(s) with {found[1]}; "
                f"its plan promised {promised}. Correct its plan or its reduce method."
            )
        return reduced, reduced_layout


class _Collected(ReductionStream):
    """Joins the pieces, then reduces them in one call."""

    def __init__(self, reducer: Reducer, layout: TokenLayout) -> None:
        self.reducer, self.layout = reducer, layout
        self.pieces: list[Tensor] = []

    @property
    def num_held(self) -> int:
        """All rows that came."""
        return sum(map(len, self.pieces))

    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Keep the piece."""
        self.pieces.append(features)

    def finish(self) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Reduce all pieces at once."""
        features = torch.cat(self.pieces) if len(self.pieces) != 1 else self.pieces[0]
        self.pieces.clear()
        return self.reducer(features, self.layout)


class _FirstStreamed(ReductionStream):
    """Streams through the first member of a chain; the others take what it leaves."""

    def __init__(self, chain: "Chain", layout: TokenLayout) -> None:
        first, *rest = chain.members
        self.first, self.rest = first.stream(layout), Chain(*rest)

    @property
    def num_held(self) -> int:
        """What the first member holds."""
        return self.first.num_held

    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Hand the piece to the first member."""
        self.first.push(features)

    def finish(self) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Run the other members."""
        return self.rest(*self.first.finish())


class Chain(Reducer):
    """Runs reducers one after another; without members it changes nothing.

    Chains inside a chain are flattened. Members must come in the order of `STAGES`, because
    that is the order in which data passes them; run a chain over several stages with `part`.

    Args:
        *members: The reducers, first to last.

    Raises:
        ValueError: If a member sits at an earlier stage than the one before it.
    """

    def __init__(self, *members: Reducer) -> None:
        super().__init__()
        flat: list[Reducer] = []
        for member in members:
            flat.extend(member.members if isinstance(member, Chain) else [member])
        for before, after in pairwise(flat):
            if STAGES.index(before.stage) > STAGES.index(after.stage):
                raise ValueError(
                    f"Found {type(before).__name__} ({before.stage}) before "
                    f"{type(after).__name__} ({after.stage}); expected the order "
                    f"{', '.join(STAGES)}. Swap the two."
                )
        self._members = nn.ModuleList(flat)
        self.stage = flat[0].stage if flat else STAGES[0]
        self.cues = tuple(sorted({cue for member in flat for cue in member.cues}))

    @property
    def members(self) -> list[Reducer]:
        """The reducers, first to last."""
        return [member for member in self._members if isinstance(member, Reducer)]

    def plan(self, shape: TokenShape) -> TokenShape:
        """The shape after the last member."""
        for member in self.members:
            shape = member.plan(shape)
        return shape

    def output_dim(self, dim: int) -> int:
        """The width after the last member."""
        for member in self.members:
            dim = member.output_dim(dim)
        return dim

    def bind(self, weights: Mapping[str, nn.Module]) -> "Reducer":
        """Bind every member."""
        for member in self.members:
            member.bind(weights)
        return self

    def part(self, stage: Stage) -> Reducer:
        """The members that sit at `stage`, as a chain."""
        return Chain(*(member for member in self.members if member.stage == stage))

    def stream(self, layout: TokenLayout) -> ReductionStream:
        """The first member streams; it is the one that meets the whole item."""
        return _FirstStreamed(self, layout) if self.members else super().stream(layout)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Run every member on what the one before it left."""
        for member in self.members:
            features, layout = member(features, layout)
        return features, layout


def check_rate(rate: float) -> float:
    """Return `rate`, the fraction of tokens removed, if it lies in [0, 1).

    Raises:
        ValueError: If it does not, or is not a number.
    """
    if not 0.0 <= rate < 1.0:  # also refuses NaN
        raise ValueError(
            f"Found rate {rate}; expected the fraction of tokens to remove, at least 0 and below 1."
        )
    return float(rate)


def check_rows(found: int, layout: TokenLayout) -> None:
    """Refuse a number of feature rows that is not the layout's number of tokens.

    Raises:
        ValueError: If they differ.
    """
    if found != layout.shape.num_tokens:
        raise ValueError(
            f"Found {found} feature row(s) for a layout of {layout.shape.num_tokens} token(s); "
            "expected one row for each token."
        )


def count_kept(num_tokens: int, rate: float) -> int:
    """Tokens left: num_tokens * (1 - rate), a half rounded down, at least 1.

    A half is one of the rate as written: 25 tokens at 0.7 leave 7, though 25 * (1 - 0.7) comes out
    a little above 7.5. Rounding to 9 decimals takes such noise away up to a million tokens.
    """
    return max(1, math.ceil(round(num_tokens * (1 - rate), 9) - 0.5))


def check_full(shape: TokenShape, reducer: str) -> None:
    """Refuse an item of which tokens were already pruned.

    Raises:
        ValueError: If some cell of the grid has no token.
    """
    if not shape.is_full:
        t, h, w = shape.grid
        raise ValueError(
            f"Found {shape.num_tokens} of {t * h * w} tokens; {reducer} needs a token in every "
            f"cell of the grid. Put it before the reducer that prunes."
        )
