"""Efficient Video Sampling (https://arxiv.org/abs/2510.14624): drop what did not change.

    d[0, n] = 255
    d[t, n] = 1 - cos(E[t, n], E[t - 1, n])      t >= 1, same place, adjacent steps
    K       = max(N + (T - 1) * min(f, N), int(T * N * (1 - q)))

Of every step the f tokens with the largest d are kept, then those with the largest d of all,
until there are K; ties to the earliest, original order. K depends on the shape alone. The first
step is always complete. With a floor f = 0, as published, a later one may be empty: at q = 0.7
nothing is left of any but the first in a clip of up to three steps.

When a reducer before this one already pruned, each token is compared with the latest
earlier token that is left at its place, one without such a token counts as new (d = 255),
and K counts the tokens that are left. On a full grid both definitions are the same. A floor
needs a full grid: of a pruned item nobody knows beforehand how many tokens a step has.
"""

# Shape legend
#   T = steps of the grid, N = cells in a step (h * w), M = tokens (T * N when full)

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from token_reduction.base import (
    Reducer,
    ReductionStream,
    Stage,
    check_full,
    check_rate,
    check_rows,
)
from token_reduction.layout import Grid, TokenLayout, TokenShape

# Dissimilarity of a token with nothing to compare to; any value above the largest 1 - cos.
NEW = 255.0
# Rows compared at once: bounds the float32 copies to about 2 * 4096 rows.
CHUNK_ROWS = 4096
# A stream holds an eighth more candidates than K before it drops all but K: dropping copies about
# K rows, so less room would cost more copies, more room more memory.
ROOM_SHARE = 8


class Evs(Reducer):
    """Keeps the tokens that differ most from the step before.

    Only indices are computed from the features, without gradient; gradients reach kept
    tokens and no others. An image has one step and keeps everything.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).
        floor: Tokens that every step keeps at least, so that no moment vanishes; costs tokens
            only where K would be smaller than the sum of what the steps keep at least.

    Raises:
        ValueError: If `rate` or `floor` is outside its range.
    """

    stage: Stage = "after_projector"
    name = "evs"  # in specs and messages

    def __init__(self, rate: float, floor: int = 0) -> None:
        super().__init__()
        self.rate = check_rate(rate)
        if floor < 0:
            raise ValueError(
                f"Found floor {floor}; expected the number of tokens that every step keeps at "
                "least, 0 or more."
            )
        self.floor = floor

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with K tokens.

        Raises:
            ValueError: If the item is audio: it has no cell that two steps share. If there is a
                floor and tokens were already pruned.
        """
        if shape.modality == "audio":
            raise ValueError(
                f"Found audio; {self.name} compares the same place of a picture over time and "
                "takes only video and image. Choose uniform or another reducer for audio."
            )
        if self.floor:
            check_full(shape, f"{self.name} with a floor")
        num_kept = evs_num_kept(shape.num_tokens, shape.grid, self.rate, self.floor)
        return TokenShape(modality=shape.modality, grid=shape.grid, num_tokens=num_kept)

    def stream(self, layout: TokenLayout) -> ReductionStream:
        """Holds the latest row of each place, a piece, and at most `capacity` candidates."""
        return _EvsStream(self, layout)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched."""
        change = ChangeOverTime(layout).push(features)
        step = step_of(layout).to(features.device)
        kept = choose(change, step, self.num_tokens(layout.shape), self.floor)
        return features[kept], layout.select(kept)


class _EvsStream(ReductionStream):
    """Keeps the K best tokens of those that came so far.

    A token that K others precede now is not among the K best at the end either: more tokens can
    only push it further back.
    """

    def __init__(self, reducer: Evs, layout: TokenLayout) -> None:
        self.layout = layout
        self.num_kept, self.floor = reducer.num_tokens(layout.shape), reducer.floor
        self.capacity = capacity(self.num_kept, layout)
        self.step = step_of(layout)
        self.arrivals = ChangeOverTime(layout)
        # The candidates: their rows in several tensors, then their d and index in the layout.
        self.rows: list[Tensor] = []
        self.change: list[Tensor] = []
        self.tokens = layout.cells[:0]

    @property
    def num_held(self) -> int:
        """Rows held: candidates and the latest of each place."""
        return len(self.tokens) + self.arrivals.num_held

    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Take the rows as candidates; drop the worst when there are too many."""
        first = self.arrivals.num_seen
        self.change.append(self.arrivals.push(features))
        self.rows.append(features)
        self.tokens = torch.cat([self.tokens, torch.arange(first, self.arrivals.num_seen)])
        if len(self.tokens) > self.capacity:
            self._drop()

    def finish(self) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """The K best."""
        check_rows(self.arrivals.num_seen, self.layout)
        self._drop()
        features = torch.cat(self.rows) if len(self.rows) != 1 else self.rows[0]
        self.rows.clear()
        return features, self.layout.select(self.tokens)

    def _drop(self) -> None:
        """Drop all but the K best candidates; one part of the rows is copied at a time."""
        change = torch.cat(self.change)
        step = self.step[self.tokens].to(change.device)
        kept = choose(change, step, self.num_kept, self.floor)
        self.change = [change[kept]]
        kept = kept.cpu()
        is_kept = torch.zeros(len(self.tokens), dtype=torch.bool)
        is_kept[kept] = True
        self.tokens = self.tokens[kept]
        for i, part in enumerate(is_kept.split([len(rows) for rows in self.rows])):
            if not part.all():
                self.rows[i] = self.rows[i][part.to(change.device)]
        self.rows = [rows for rows in self.rows if len(rows)]


def evs_num_kept(num_tokens: int, grid: Grid, rate: float, floor: int = 0) -> int:
    """K: the number of tokens EVS keeps of `num_tokens` on a grid (t, h, w)."""
    t, h, w = grid
    at_least = h * w + (t - 1) * min(floor, h * w)
    return max(min(at_least, num_tokens), int(num_tokens * (1 - rate)))


def capacity(num_kept: int, layout: TokenLayout) -> int:
    """Candidates that a stream holds before it drops all but K: room for an eighth or a step."""
    _, h, w = layout.shape.grid
    return num_kept + max(num_kept // ROOM_SHARE, h * w)


def evs_keep_mask(
    features: Float[Tensor, "tokens dim"], grid: Grid, rate: float
) -> Bool[Tensor, " tokens"]:
    """Which tokens of one complete video EVS keeps.

    Args:
        features: Projected embeddings, rows in (t, h, w) order, one for every cell.
        grid: Cells (t, h, w).
        rate: Fraction of tokens to remove, in [0, 1).

    Returns:
        True for kept tokens; exactly `evs_num_kept` of them, on the device of `features`.

    Raises:
        ValueError: If the rows do not fill the grid, or `rate` is outside its range.
    """
    t, h, w = grid
    if len(features) != t * h * w:
        raise ValueError(
            f"Found {len(features)} feature row(s) for grid {grid}; expected {t * h * w}."
        )
    change = _dissimilarity(features, *pairs_over_time(torch.arange(len(features)), grid))
    kept = largest(change, evs_num_kept(len(features), grid, check_rate(rate)))
    mask = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    mask[kept] = True
    return mask


class ChangeOverTime:
    """Computes d of one item's tokens, which may come in pieces.

    Args:
        layout: What all the tokens will be.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.num_seen = 0
        self._latest: Tensor | None = None  # (places seen, dim): the latest row of each place
        self._cells = layout.cells[:0]  # where these rows are

    @property
    def num_held(self) -> int:
        """Rows held: at most one for each place."""
        return len(self._cells)

    @torch.no_grad()
    def push(self, features: Float[Tensor, "piece dim"]) -> Float[Tensor, " piece"]:
        """Compute d of the next rows.

        Raises:
            ValueError: If more rows come than the layout has tokens.
        """
        before, after = self.num_seen, self.num_seen + len(features)
        if after > len(self.layout.cells):
            check_rows(after, self.layout)
        rows = features if self._latest is None else torch.cat([self._latest, features])
        cells = torch.cat([self._cells, self.layout.cells[before:after]])
        later, earlier = pairs_over_time(cells, self.layout.shape.grid)
        change = _dissimilarity(rows, later, earlier)[len(self._cells) :]

        is_latest = torch.ones(len(cells), dtype=torch.bool)
        is_latest[earlier] = False
        self._latest, self._cells = rows[is_latest.to(rows.device)], cells[is_latest]
        self.num_seen = after
        return change


def choose(
    change: Float[Tensor, " tokens"], step: Int[Tensor, " tokens"], num_kept: int, floor: int = 0
) -> Int[Tensor, " kept"]:
    """Which tokens EVS keeps: `floor` of each step, then those with the largest d.

    Args:
        change: d of each token.
        step: Step of each token, ascending.
        num_kept: How many are kept, if there are as many.
        floor: Tokens that each step keeps at least.

    Returns:
        Indices, ascending.
    """
    if floor:
        best_first = torch.argsort(change, descending=True, stable=True)
        by_step = best_first[torch.argsort(step[best_first], stable=True)]
        start_of_step = torch.searchsorted(step, step)
        rank = torch.empty_like(by_step)
        rank[by_step] = torch.arange(len(step), device=step.device) - start_of_step
        change = change.masked_fill(rank < floor, NEW)
    return largest(change, num_kept)


def largest(change: Float[Tensor, " tokens"], num_kept: int) -> Int[Tensor, " kept"]:
    """Indices of the largest values, ties to the earliest, in ascending order."""
    order = torch.argsort(change, descending=True, stable=True)
    return order[:num_kept].sort().values


def step_of(layout: TokenLayout) -> Int[Tensor, " tokens"]:
    """Step t of the grid in which each token is."""
    _, h, w = layout.shape.grid
    return layout.cells // (h * w)


def pairs_over_time(
    cells: Int[Tensor, " tokens"], grid: Grid
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """(later, earlier) token indices: same place, neighbours in time among the tokens left."""
    _, h, w = grid
    place = cells % (h * w)
    # Sorted by place, and within a place by time, because cells ascend and the sort is stable.
    order = torch.argsort(place, stable=True)
    same_place = place[order].diff() == 0
    return order[1:][same_place], order[:-1][same_place]


@torch.no_grad()
def _dissimilarity(
    features: Float[Tensor, "tokens dim"],
    later: Int[Tensor, " pairs"],
    earlier: Int[Tensor, " pairs"],
) -> Float[Tensor, " tokens"]:
    """Compute d for every token, in float32 whatever the features are (bfloat16 ties often)."""
    later, earlier = later.to(features.device), earlier.to(features.device)
    change = torch.full((len(features),), NEW, device=features.device)
    for rows, before in zip(later.split(CHUNK_ROWS), earlier.split(CHUNK_ROWS), strict=True):
        similarity = F.cosine_similarity(features[rows].float(), features[before].float(), dim=-1)
        change[rows] = 1 - similarity
    return change
