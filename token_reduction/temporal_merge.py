"""Temporal merging: what stays alike at a place becomes one token, the mean over that time.

    d, K as in `evs`
    The K tokens that evs would keep begin a run each. Every other token joins the latest run
    that began before it at its place.
    y[r] = sum over i in run r of s[i] x[i] / (sum over i in run r of s[i])

s[i] is the number of source cells that token i stands for. Where evs drops a token because the
one before it says the same, this one lets it vote. Of the kind of DyCoke
(https://arxiv.org/abs/2411.15024), which first removes what repeats over time at a place, and of
FastVID (https://arxiv.org/abs/2503.11187), which merges within segments of a clip.
"""

# Shape legend
#   K = runs in the end, R = runs held at present, C = width

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.base import ReductionStream, check_rows
from token_reduction.evs import CHUNK_ROWS, ChangeOverTime, Evs, capacity, choose, step_of
from token_reduction.grouping import group_shares
from token_reduction.layout import Grid, TokenLayout


class TemporalMerge(Evs):
    """Merges the tokens that `Evs` would drop into the run at their place.

    A merged token stands in the cell of its first member. Means are computed in float32 or wider;
    a token that nothing merged into stays as it is, bit by bit. An image keeps everything.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).
        floor: Runs that begin in every step at least.

    Raises:
        ValueError: If `rate` or `floor` is outside its range.
    """

    name = "temporal_merge"

    def stream(self, layout: TokenLayout) -> ReductionStream:
        """Holds the latest row and the running means of each place, at most `capacity` of them."""
        return _MergeStream(self, layout)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Push all rows through a stream: only the same order of sums gives the same last bit."""
        stream = self.stream(layout)
        stream.push(features)
        return stream.finish()


class _MergeStream(ReductionStream):
    """Every token begins a run; when there are too many, the least changed ones join another.

    A token that K others precede now would not begin a run at the end either, so its run joins
    the one before it at its place at once. Runs are joined whenever `capacity` is reached, however
    the rows are cut into pieces.
    """

    def __init__(self, reducer: TemporalMerge, layout: TokenLayout) -> None:
        self.layout = layout
        self.num_kept, self.floor = reducer.num_tokens(layout.shape), reducer.floor
        self.capacity = capacity(self.num_kept, layout)
        self.step, self.sizes = step_of(layout), layout.source_ptr.diff().float()
        self.arrivals = ChangeOverTime(layout)
        self.dtype = torch.float32  # of what comes in
        # The runs: their means in several tensors of (some of R, C), then for each of them its
        # first token, the d of that, and the sum of the members' sizes.
        self.means: list[Tensor] = []
        self.first = layout.cells[:0]
        self.change: list[Tensor] = []
        self.run_sizes = self.sizes[:0]

    @property
    def num_held(self) -> int:
        """Rows held: runs and the latest of each place."""
        return len(self.first) + self.arrivals.num_held

    def push(self, features: Float[Tensor, "piece dim"]) -> None:
        """Take the rows as runs of their own, as many at a time as there is room for."""
        self.dtype = features.dtype
        while len(features):
            room = self.capacity - len(self.first)
            part, features = features[:room], features[room:]
            before = self.arrivals.num_seen
            self.change.append(self.arrivals.push(part))
            after = self.arrivals.num_seen
            self.means.append(part.to(torch.promote_types(part.dtype, torch.float32)))
            self.first = torch.cat([self.first, torch.arange(before, after)])
            self.run_sizes = torch.cat([self.run_sizes, self.sizes[before:after]])
            if len(self.first) == self.capacity:
                self._join()

    def finish(self) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """The means of the runs."""
        check_rows(self.arrivals.num_seen, self.layout)
        self._join()
        (means,) = self.means
        return means.to(self.dtype), self._merged_layout()

    def _join(self) -> None:
        """Keep the K runs that differ most from what was before; the others join these."""
        change = torch.cat(self.change)
        starts = choose(change, self.step[self.first].to(change.device), self.num_kept, self.floor)
        self.change = [change[starts]]
        starts = starts.cpu()
        run = run_of(self.layout.cells[self.first], self.layout.shape.grid, starts)
        shares = group_shares(run, len(starts), self.run_sizes)
        self.run_sizes = self.run_sizes.new_zeros(len(starts)).index_add(0, run, self.run_sizes)
        self.first = self.first[starts]

        # A chunk of rows at a time, so that besides old and new means no third copy exists.
        joined = self.means[0].new_zeros(len(starts), self.means[0].shape[1])
        chunks = [chunk for means in self.means for chunk in means.split(CHUNK_ROWS)]
        self.means = [joined]
        sizes = [len(chunk) for chunk in chunks]
        for chunk, to, share in zip(chunks, run.split(sizes), shares.split(sizes), strict=True):
            to, share = to.to(joined.device), share.to(joined)
            joined.index_add_(0, to, share[:, None] * chunk)

    def _merged_layout(self) -> TokenLayout:
        """The layout of the runs, each with all of its members."""
        layout, num_runs = self.layout, len(self.first)
        run = run_of(layout.cells, layout.shape.grid, self.first)
        by_run = torch.argsort(run, stable=True)
        lengths = torch.bincount(run, minlength=num_runs)
        return layout.merge(
            shape=layout.select(self.first).shape,
            cells=layout.cells[self.first],
            time_spans=layout.time_spans,
            group_ptr=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            members=by_run,
            weights=group_shares(run, num_runs, self.sizes)[by_run],
        )


def run_of(
    cells: Int[Tensor, " tokens"], grid: Grid, starts: Int[Tensor, " runs"]
) -> Int[Tensor, " tokens"]:
    """The run of each token: the latest that began at its place, itself included.

    Args:
        cells: Cell of each token in `grid`, ascending.
        grid: Cells (t, h, w).
        starts: Tokens that begin a run, ascending; the first token at every place is one.

    Returns:
        For each token an index into `starts`.
    """
    _, h, w = grid
    row = torch.full((len(cells),), -1)
    row[starts] = torch.arange(len(starts))
    # Sorted by place, and within a place by time; there the run goes on until the next one begins.
    order = torch.argsort(cells % (h * w), stable=True)
    begins = torch.where(row[order] >= 0, torch.arange(len(cells)), 0)
    run = torch.empty_like(row)
    run[order] = row[order[begins.cummax(0).values]]
    return run
