"""``omni finetune check DATA``: what is in a data set, and which rows are bad and why."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

import omni

if TYPE_CHECKING:
    from finetune.data import DataReport
    from omni import OmniProcessor

DataArgument = Annotated[
    Path, typer.Argument(help=".jsonl, .json, .tar, dataset_info.json#SET, or a folder.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Checkpoint that will be trained [default: embedded omni-tiny]"),
]
MediaOption = Annotated[
    Path | None,
    typer.Option("--media", help="Folder of relative media paths [default: that of the data]"),
]
RootOption = Annotated[
    list[Path] | None,
    typer.Option("--root", help="Only read media below this folder; may be repeated."),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--max-length", min=1, help="Longest sample in tokens [default: the context]"),
]
FitOption = Annotated[
    bool, typer.Option("--fit", help="Reduce media of too long samples instead of refusing them.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def check(
    data: DataArgument,
    model: ModelOption = None,
    media: MediaOption = None,
    root: RootOption = None,
    max_length: LengthOption = None,
    fit: FitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read every row and all media; exit code 1 if a row is bad."""
    # Here, because torch takes seconds and `omni --help` shall not.
    from finetune.data import check_dataset, open_dataset, with_max_length
    from omni import MediaOptions

    dataset = open_dataset(data, media_dir=media)
    processor = load_processor(model)
    processor.allowed_roots = root
    length = min(max_length or processor.settings.max_model_len, processor.settings.max_model_len)
    processor = with_max_length(processor, length)
    options = MediaOptions()
    with _progress(len(dataset)) as progress:
        report = check_dataset(
            dataset,
            processor,
            options=replace(options, max_tokens=length) if fit else options,
            progress=progress,
        )
    if as_json:
        described = {"data": str(data), "max_length": length, "version": omni.__version__}
        typer.echo(json.dumps({**described, **report.to_dict()}, ensure_ascii=False))
    else:
        print_report(report, Console())
    if report.bad:
        raise typer.Exit(1)


def load_processor(model: str | None) -> "OmniProcessor":
    """Load tokenizer, template and settings of a checkpoint, without its weights.

    Args:
        model: Directory or hub id; None is the embedded checkpoint.
    """
    from omni.assistant import EMBEDDED_MODEL, EMBEDDED_PATH
    from omni.checkpoint import resolve_checkpoint
    from omni.config import OmniConfig
    from omni.processor import OmniProcessor

    embedded = model is None or model == EMBEDDED_MODEL
    directory = EMBEDDED_PATH if embedded else resolve_checkpoint(str(model))
    return OmniProcessor.from_pretrained(directory, OmniConfig.from_pretrained(directory))


def print_report(report: "DataReport", console: Console) -> None:
    """Write the report for people.

    Args:
        report: From `finetune.data.check_dataset`.
        console: Where to.
    """
    console.print(
        f"{report.rows:,} rows, {report.good:,} good, {len(report.bad):,} bad; "
        f"{report.loss_tokens:,} tokens to learn"
        + (f"; {report.reduced:,} samples reduced to fit" if report.reduced else "")
    )
    table = Table("tokens", "samples", "in all", "most", "samples by tokens (up to: samples)")
    for kind, count in report.tokens.items():
        if count.samples:
            bins = "  ".join(f"{bound:,}: {n:,}" for bound, n in sorted(count.histogram.items()))
            numbers = (f"{n:,}" for n in (count.samples, count.total, count.most))
            table.add_row("samples" if kind == "all" else kind, *numbers, bins)
    console.print(table)
    if report.longest:
        table = Table(Column("longest samples", overflow="fold"), "tokens", "of which")
        for origin, counts in report.longest:
            shares = ", ".join(f"{k} {n:,}" for k, n in counts.items() if n and k != "all")
            table.add_row(Text(str(origin)), f"{counts['all']:,}", shares)
        console.print(table)
    for row in report.bad:
        console.print(Text(f"bad: {row}"), soft_wrap=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), "rows", MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda done: bar.update(task, completed=done)
