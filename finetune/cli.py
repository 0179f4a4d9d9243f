"""The verbs that `finetune` adds to the `omni` program."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from omni.errors import RequestError

if TYPE_CHECKING:
    from finetune.tiny.evaluate import Score

WhatArgument = Annotated[str, typer.Argument(help="`tiny`: everything that omni-tiny claims.")]
DataOption = Annotated[Path, typer.Option(help="Folder of the data, with fsdd/, cifar10/ ...")]
ModelOption = Annotated[
    str | None, typer.Option(help="Checkpoint directory or hub id [default: embedded omni-tiny]")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Most questions an ability [default: all held out]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DATA = Path("../shared/data")


def register(app: typer.Typer) -> None:
    """Add the verbs.

    Args:
        app: The `omni` program.
    """
    app.command("eval")(evaluate)


def evaluate(
    what: WhatArgument,
    data: DataOption = DATA,
    model: ModelOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint on held-out data, with 95 % intervals."""
    if what != "tiny":
        raise RequestError(f"Found eval {what!r}; expected 'tiny', the only evaluation there is.")
    if not (data / "cifar10").is_dir():
        raise RequestError(
            f"{data}: found no cifar10/ there; expected the folder of the training data. "
            "Give it with --data."
        )
    # Here, because torch and the data code take seconds and `omni --help` shall not.
    from finetune.tiny import evaluate as tiny
    from omni.assistant import Assistant

    console = Console(stderr=True)
    start = time.perf_counter()
    assistant = Assistant.from_pretrained(model)
    cases = tiny.make_cases(data, limit)
    with console.status("evaluating") as status:
        scores = tiny.evaluate(
            assistant, cases, lambda name, done: status.update(f"{name}: {done}/{len(cases[name])}")
        )
    seconds = time.perf_counter() - start
    if as_json:
        written = tiny.as_json(scores, model=assistant.name, seconds=seconds, limit=limit)
        typer.echo(json.dumps(written))
        return
    Console().print(score_table(scores, assistant.name, seconds))


def score_table(scores: "list[Score]", model: str, seconds: float) -> Table:
    """Lay scores out as a table.

    Args:
        scores: From `finetune.tiny.evaluate.evaluate`.
        model: Name of the model.
        seconds: What the evaluation took.
    """
    from finetune.tiny.evaluate import ABILITIES

    table = Table(title=f"{model} on held-out data, {seconds:.0f} s")
    for column in ("ability", "n", "score", "95 % interval", "floor", ""):
        table.add_column(column, justify="left" if column == "ability" else "right")
    for score in scores:
        ability = ABILITIES[score.ability]
        sign = "<=" if ability.is_error else ">="
        verdict = {True: "[green]ok[/green]", False: "[red]below[/red]", None: ""}[score.holds]
        table.add_row(
            ability.name,
            str(score.count),
            f"{100 * score.mean:.1f} %",
            f"{100 * score.low:.1f} - {100 * score.high:.1f} %",
            "" if ability.floor is None else f"{sign} {100 * ability.floor:.0f} %",
            verdict,
        )
    return table
