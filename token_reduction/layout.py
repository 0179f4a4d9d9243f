"""What is known about the tokens of one media item: how many, where from, when.

`TokenShape` holds what can be known before anything runs, so processors and planners count
with it. `TokenLayout` adds what only running can tell: which cells were kept, and which
cells of the source (patches of single frames, steps of a spectrogram) each token stands for.

Features travel beside a layout as flat rows, in row-major (t, h, w) order of its grid.
Layout tensors live on the CPU whatever device the features are on: prompts are laid out
from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Modality = Literal["image", "video", "audio"]
Grid = tuple[int, int, int]
TimeSpans = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShape:
    """The size of one media item in tokens, known before anything runs.

    Attributes:
        modality: What the item is.
        grid: Cells as (t, h, w). A still image has t = 1; audio has h = w = 1.
        num_tokens: t * h * w while nothing was pruned; fewer after pruning.

    Raises:
        ValueError: If the grid does not fit the modality, or `num_tokens` does not fit the grid.
    """

    modality: Modality
    grid: Grid
    num_tokens: int

    def __post_init__(self) -> None:
        t, h, w = self.grid
        if min(t, h, w) < 1:
            raise ValueError(
                f"Found grid (t, h, w) = {self.grid}; expected every side to be at least 1."
            )
        if self.modality == "image" and t != 1:
            raise ValueError(
                f"Found an image with grid {self.grid}; expected t = 1. "
                "Pass pages or tiles as one image each."
            )
        if self.modality == "audio" and (h, w) != (1, 1):
            raise ValueError(f"Found audio with grid {self.grid}; expected (t, 1, 1).")
        if not 1 <= self.num_tokens <= t * h * w:
            raise ValueError(
                f"Found {self.num_tokens} token(s) for grid {self.grid}; "
                f"expected between 1 and {t * h * w}."
            )

    @classmethod
    def full(cls, modality: Modality, grid: Grid) -> "TokenShape":
        """The shape of an item with one token in every cell of `grid` (t, h, w)."""
        t, h, w = grid
        return cls(modality=modality, grid=grid, num_tokens=t * h * w)

    @property
    def is_full(self) -> bool:
        """True while every cell of the grid has its token."""
        t, h, w = self.grid
        return self.num_tokens == t * h * w


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLayout:
    """A `TokenShape` plus what is known after running.

    Provenance is a sparse matrix (tokens x source cells) in compressed rows: token i stands
    for `source_cells[source_ptr[i]:source_ptr[i + 1]]`, ascending and without repeats, with
    `source_weights` in the same places. The weights of a token sum to 1.

    Attributes:
        shape: What was known before running.
        cells: Cell of each token as row-major flat index into `shape.grid`, ascending.
        time_spans: (start, end) in seconds for each step t of the grid; None for stills.
        source_grid: Cells (t, h, w) of the item before any reducer.
        source_ptr: Row pointers; starts with 0.
        source_cells: Row-major flat indices into `source_grid`.
        source_weights: Share of each source cell in its token.
        cues: What encoder or gateway know of each token, one number a token, by name: `energy`
            (decibels of the sound), `attention` (what the tower's summary token pays it). A
            reducer that wants a cue says what it does without it.

    Raises:
        ValueError: If the parts disagree in length, or `cells` is not ascending and in range.
    """

    shape: TokenShape
    cells: Int[Tensor, " tokens"]
    time_spans: TimeSpans | None
    source_grid: Grid
    source_ptr: Int[Tensor, " tokens+1"]
    source_cells: Int[Tensor, " entries"]
    source_weights: Float[Tensor, " entries"]
    cues: Mapping[str, Float[Tensor, " tokens"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t, h, w = self.shape.grid
        tokens = self.shape.num_tokens
        if len(self.cells) != tokens or len(self.source_ptr) != tokens + 1:
            raise ValueError(
                f"Found {len(self.cells)} cell(s) and {len(self.source_ptr)} source pointer(s); "
                f"expected {tokens} and {tokens + 1}, as the shape says."
            )
        in_range = int(self.cells[0]) >= 0 and int(self.cells[-1]) < t * h * w
        if not in_range or bool((self.cells.diff() <= 0).any()):
            raise ValueError(
                f"Found cells {self.cells.tolist()[:8]}; expected strictly ascending "
                f"indices below {t * h * w}."
            )
        entries = int(self.source_ptr[-1])
        if len(self.source_cells) != entries or len(self.source_weights) != entries:
            raise ValueError(
                f"Found {len(self.source_cells)} source cell(s) and {len(self.source_weights)} "
                f"weight(s); expected {entries} of each, as the last source pointer says."
            )
        for name, values in self.cues.items():
            if values.shape != (tokens,):
                raise ValueError(
                    f"Found cue {name!r} of shape {tuple(values.shape)}; expected one number for "
                    f"each of {tokens} token(s)."
                )
        if self.time_spans is not None and len(self.time_spans) != t:
            raise ValueError(
                f"Found {len(self.time_spans)} time span(s); expected one for each of {t} step(s)."
            )

    @classmethod
    def full(
        cls,
        modality: Modality,
        grid: Grid,
        time_spans: TimeSpans | None = None,
        cues: Mapping[str, Float[Tensor, " tokens"]] | None = None,
    ) -> "TokenLayout":
        """The layout before any reducer: a token in every cell, each its own source.

        Args:
            modality: What the item is.
            grid: Cells (t, h, w).
            time_spans: (start, end) in seconds for each step t; None where time means nothing.
            cues: Numbers about each cell, by name.
        """
        shape = TokenShape.full(modality, grid)
        return cls(
            shape=shape,
            cells=torch.arange(shape.num_tokens),
            time_spans=time_spans,
            source_grid=grid,
            source_ptr=torch.arange(shape.num_tokens + 1),
            source_cells=torch.arange(shape.num_tokens),
            source_weights=torch.ones(shape.num_tokens),
            cues=cues or {},
        )

    @classmethod
    def join(cls, parts: Sequence["TokenLayout"]) -> "TokenLayout":
        """The layout of parts of one item, one after another in time.

        Args:
            parts: At least one; alike in modality, size of a step (also of the source), cues, and
                whether they have time spans.

        Raises:
            ValueError: If they are not alike.
        """
        kinds = [
            (
                p.shape.modality,
                *p.shape.grid[1:],
                *p.source_grid[1:],
                p.time_spans is None,
                *sorted(p.cues),
            )
            for p in parts
        ]
        if len(set(kinds)) != 1:
            raise ValueError(
                f"Found parts of (modality, step, source step, no time, cues) {set(kinds)}; "
                "expected parts of one item, all alike."
            )
        first = parts[0]
        cells, source_cells, source_ptr = [], [], [torch.zeros(1, dtype=torch.long)]
        steps = source_steps = entries = 0
        for part in parts:
            cells.append(part.cells + steps * first.shape.grid[1] * first.shape.grid[2])
            offset = source_steps * first.source_grid[1] * first.source_grid[2]
            source_cells.append(part.source_cells + offset)
            source_ptr.append(part.source_ptr[1:] + entries)
            steps += part.shape.grid[0]
            source_steps += part.source_grid[0]
            entries += len(part.source_cells)
        spans = None if first.time_spans is None else [p.time_spans or () for p in parts]
        return cls(
            shape=TokenShape(
                modality=first.shape.modality,
                grid=(steps, *first.shape.grid[1:]),
                num_tokens=sum(part.shape.num_tokens for part in parts),
            ),
            cells=torch.cat(cells),
            time_spans=None if spans is None else tuple(chain.from_iterable(spans)),
            source_grid=(source_steps, *first.source_grid[1:]),
            source_ptr=torch.cat(source_ptr),
            source_cells=torch.cat(source_cells),
            source_weights=torch.cat([part.source_weights for part in parts]),
            cues={name: torch.cat([part.cues[name] for part in parts]) for name in first.cues},
        )

    @property
    def tokens_per_step(self) -> tuple[int, ...]:
        """Number of tokens left in each step t of the grid; zeros included."""
        t, h, w = self.shape.grid
        return tuple(torch.bincount(self.cells // (h * w), minlength=t).tolist())

    def select(self, kept: Int[Tensor, " kept"]) -> "TokenLayout":
        """The layout of some of the tokens; the grid stays.

        Args:
            kept: Ascending indices of the tokens to keep, on any device.
        """
        kept = kept.cpu()
        source_ptr, entries = _gather_rows(self.source_ptr, kept)
        shape = self.shape
        return TokenLayout(
            shape=TokenShape(modality=shape.modality, grid=shape.grid, num_tokens=len(kept)),
            cells=self.cells[kept],
            time_spans=self.time_spans,
            source_grid=self.source_grid,
            source_ptr=source_ptr,
            source_cells=self.source_cells[entries],
            source_weights=self.source_weights[entries],
            cues={name: values[kept] for name, values in self.cues.items()},
        )

    def merge(
        self,
        *,
        shape: TokenShape,
        cells: Int[Tensor, " groups"],
        time_spans: TimeSpans | None,
        group_ptr: Int[Tensor, " groups+1"],
        members: Int[Tensor, " members"],
        weights: Float[Tensor, " members"],
    ) -> "TokenLayout":
        """The layout of new tokens, each a weighted group of the present ones.

        Provenance is the product of two sparse matrices, (groups x tokens) and
        (tokens x source cells), so that it always speaks of the source, however long the
        chain of reducers. A source cell that reaches a group twice has its weights added. Cues
        are averaged with the same weights, in float32 whatever they were.

        Args:
            shape: Shape of the new tokens.
            cells: Cell of each new token in `shape.grid`, ascending.
            time_spans: (start, end) in seconds for each step t of the new grid.
            group_ptr: Row pointers into `members`; starts with 0.
            members: Indices of present tokens, on any device.
            weights: Share of each member in its group; sums to 1 in every group.
        """
        group_ptr, members, weights = group_ptr.cpu(), members.cpu(), weights.cpu().float()
        num_groups = len(cells)
        num_sources = self.source_grid[0] * self.source_grid[1] * self.source_grid[2]

        # 1. Write out every (group, source cell, weight) triple.
        entry_ptr, entries = _gather_rows(self.source_ptr, members)
        entries_per_member = entry_ptr.diff()
        group_of_member = torch.arange(num_groups).repeat_interleave(group_ptr.diff())
        cues = {
            name: torch.zeros(num_groups).index_add_(
                0, group_of_member, values[members].float() * weights
            )
            for name, values in self.cues.items()
        }
        group = group_of_member.repeat_interleave(entries_per_member)
        share = weights.repeat_interleave(entries_per_member) * self.source_weights[entries]

        # 2. Add up triples with the same group and source cell; sorting brings row order back.
        keys, place = torch.unique(
            group * num_sources + self.source_cells[entries], return_inverse=True
        )
        source_weights = torch.zeros(len(keys)).index_add_(0, place, share)
        entries_per_group = torch.bincount(keys // num_sources, minlength=num_groups)

        return TokenLayout(
            shape=shape,
            cells=cells.cpu(),
            time_spans=time_spans,
            source_grid=self.source_grid,
            source_ptr=_pointers(entries_per_group),
            source_cells=keys % num_sources,
            source_weights=source_weights,
            cues=cues,
        )


def joined_spans(time_spans: TimeSpans | None, num_steps: int) -> TimeSpans | None:
    """Time spans of every `num_steps` consecutive steps; the last ones may be fewer."""
    if time_spans is None:
        return None
    groups = [time_spans[i : i + num_steps] for i in range(0, len(time_spans), num_steps)]
    return tuple((group[0][0], group[-1][1]) for group in groups)


def _pointers(counts: Int[Tensor, " rows"]) -> Int[Tensor, " rows+1"]:
    """Row pointers from row lengths: a running sum with 0 in front."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _gather_rows(
    ptr: Int[Tensor, " pointers"], rows: Int[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows+1"], Int[Tensor, " entries"]]:
    """Take rows of a compressed-row matrix.

    Returns:
        Pointers of the taken rows, and where each of their entries lies in the old matrix.
    """
    counts = ptr.diff()[rows]
    taken_ptr = _pointers(counts)
    shift = (ptr[rows] - taken_ptr[:-1]).repeat_interleave(counts)
    return taken_ptr, torch.arange(int(taken_ptr[-1])) + shift
