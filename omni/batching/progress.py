"""How a batch is shown: a bar while it runs, a table when it is done."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from omni.batching.cluster import RayRun
from omni.batching.run import BatchRun
from omni.batching.summary import Summary

LINE_EVERY_S = 30.0  # where stderr is no terminal


def run_shown(run: BatchRun | RayRun, console: Console) -> None:
    """Take every record of a batch, and show on the console how far it is.

    Args:
        run: The batch.
        console: Of stderr; a bar on a terminal, elsewhere a plain line now and then.
    """
    begin = time.monotonic()
    total = run.count_items()
    if not console.is_terminal:
        last = begin
        for _ in run:
            if time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                console.print(_line(run.summary, total, last - begin), highlight=False)
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=total, state="")
        for _ in run:
            state = _state(run.summary, time.monotonic() - begin)
            progress.update(bar, completed=run.summary.items, state=state)


def _state(summary: Summary, seconds: float) -> str:
    rate = summary.computed / max(seconds, 1e-9)
    failed = f" · {summary.failed} failed" if summary.failed else ""
    return f"{rate:.2f} answers/s{failed}"


def _line(summary: Summary, total: int | None, seconds: float) -> str:
    of = "" if total is None else f" of {total}"
    left = ""
    if total is not None and summary.items:
        minutes = (total - summary.items) * seconds / summary.items / 60
        left = f" · about {minutes:.0f} min left"
    return f"{summary.items}{of} items · {_state(summary, seconds)}{left}"


def summary_table(summary: Summary, skipped: dict[str, int]) -> Table:
    """The numbers of a finished batch."""
    table = Table("", "count", show_header=False)
    table.add_row("items", f"{summary.items:,}")
    table.add_row("answers", f"{summary.answered:,}")
    reused = summary.records - summary.computed
    table.add_row("known before, or of equal files", f"{max(reused, 0):,}")
    for name, number in sorted(summary.errors.items()):
        table.add_row(f"[red]{name}[/red]", f"{number:,}")
    table.add_row("tokens of prompts", f"{summary.prompt_tokens:,}")
    table.add_row("tokens of answers", f"{summary.answer_tokens:,}")
    table.add_row("seconds", f"{summary.seconds:,.1f}")
    if skipped:
        listed = ", ".join(f"{number} {suffix}" for suffix, number in sorted(skipped.items())[:5])
        table.add_row("files that are no media", f"{sum(skipped.values()):,} ({listed})")
    return table
