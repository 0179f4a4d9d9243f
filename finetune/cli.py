"""The verbs that `finetune` adds to the `omni` program."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from finetune.cli_check import check
from finetune.cli_eval import (
    AdapterOption,
    AnswerOption,
    MetricOption,
    ReduceOption,
    SchemaOption,
    evaluate_data,
)
from finetune.cli_run import RUN, RunByDefault, merge_command, run
from omni.errors import RequestError

if TYPE_CHECKING:
    from finetune.bench.reduce import Row
    from finetune.tiny.cases import Case
    from finetune.tiny.evaluate import OtherScore, Score
    from omni.inputs import Modality

WhatArgument = Annotated[
    str,
    typer.Argument(
        metavar="tiny|DATA", help="`tiny`: everything that omni-tiny claims; or your own data."
    ),
]
DataOption = Annotated[Path, typer.Option(help="Folder of the data, with fsdd/, cifar10/ ...")]
ModelOption = Annotated[
    str | None, typer.Option(help="Checkpoint directory or hub id [default: embedded omni-tiny]")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Most questions an ability [default: all held out]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BaselinesOption = Annotated[
    bool, typer.Option("--baselines", help="With `tiny`: what others score on the same questions.")
]
SpecsOption = Annotated[
    list[str] | None,
    typer.Option("--reduce", help="A reducer to measure, such as 'evs(0.75)'; may be repeated."),
]
TasksOption = Annotated[
    list[str] | None, typer.Option("--task", help="What to ask; may be repeated [default: all]")
]
CasesOption = Annotated[int, typer.Option("--limit", min=2, help="Most cases a task.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for results.jsonl and a picture a task.")
]
ConversationsArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Conversations with answers: JSON Lines, tar, ...")
]
ScorerOutOption = Annotated[Path, typer.Option("--out", help="Folder for the new checkpoint.")]
BaseOption = Annotated[
    str | None, typer.Option(help="Checkpoint to start from [default: embedded omni-tiny]")
]
ModalitiesOption = Annotated[
    list[str],
    typer.Option("--modality", help="Whose tokens: image, video or audio; may be repeated."),
]
RatesOption = Annotated[
    tuple[float, float], typer.Option(help="Lowest and highest rate that is drawn for a sample.")
]
QueriesOption = Annotated[
    tuple[int, int] | None,
    typer.Option(help="Train a resampler instead, with a number of queries between these two."),
]
StepsOption = Annotated[int, typer.Option("--max-steps", min=1, help="Optimiser steps.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Conversations in a step.")]
LearningRateOption = Annotated[float, typer.Option(help="Higher learns faster, less steadily.")]
ProjectorOption = Annotated[
    float, typer.Option(help="Train the projectors too, at this learning rate; 0 leaves them.")
]
DistillationOption = Annotated[
    float, typer.Option(help="Weight of agreeing with the unreduced model; costs a second pass.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of order, rates and noise.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")]
DATA = Path("../shared/data")
SPECS = ("evs(0.75)", "merge(0.75)", "prune_merge(0.75)", "divprune(0.75)", "adjacent_merge(0.75)")


def register(app: typer.Typer) -> None:
    """Add the verbs.

    Args:
        app: The `omni` program.
    """
    app.command("eval")(evaluate)
    bench = typer.Typer(no_args_is_help=True, help="Measure what a choice costs and what it saves.")
    bench.command("reduce")(bench_reduce)
    app.add_typer(bench, name="bench")
    finetune = typer.Typer(
        cls=RunByDefault, no_args_is_help=True, help="Adapt a model to your own data."
    )
    finetune.command(RUN)(run)
    finetune.command("check")(check)
    finetune.command("scorer")(train_scorer)
    app.add_typer(finetune, name="finetune")
    app.command("merge")(merge_command)


def train_scorer(
    data: ConversationsArgument,
    out: ScorerOutOption,
    modality: ModalitiesOption,
    base: BaseOption = None,
    rates: RatesOption = (0.0, 0.85),
    queries: QueriesOption = None,
    max_steps: StepsOption = 500,
    batch_size: BatchOption = 16,
    learning_rate: LearningRateOption = 3e-3,
    projector_learning_rate: ProjectorOption = 0.0,
    distillation: DistillationOption = 0.0,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the reducer `learned` (or `resampler`) on conversations with media."""
    from finetune.data import open_dataset
    from finetune.scorer import ScorerTraining, train_scorers
    from omni.assistant import Assistant

    settings = ScorerTraining(
        steps=max_steps,
        modalities=cast("tuple[Modality, ...]", tuple(modality)),  # checked there
        rates=rates,
        queries=queries,
        batch_size=batch_size,
        learning_rate=learning_rate,
        projector_learning_rate=projector_learning_rate,
        distillation=distillation,
        seed=seed,
    )
    conversations = open_dataset(data)
    assistant = Assistant.from_pretrained(base)
    losses: list[float] = []
    with Console(stderr=True).status("training") as status:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            recent = sum(losses[-20:]) / len(losses[-20:])
            status.update(f"step {step} of {max_steps}, loss {recent:.3f}")

        train_scorers(
            assistant.model,
            assistant.processor,
            conversations,
            settings,
            out=out,
            resume=resume,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), "steps": max_steps, "losses": losses}))
        return
    what = f"scorers, rates {rates[0]:g} to {rates[1]:g}"
    if queries is not None:
        what = f"resamplers, {queries[0]} to {queries[1]} queries"
    typer.echo(f"{out}: {what}, for {', '.join(modality)}")


def evaluate(
    what: WhatArgument,
    data: DataOption = DATA,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    metric: MetricOption = None,
    reduce: ReduceOption = None,
    max_new_tokens: AnswerOption = None,
    schema: SchemaOption = None,
    limit: LimitOption = None,
    baselines: BaselinesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint on held-out data, with 95 % intervals.

    `omni eval tiny` measures what omni-tiny claims; `omni eval DATA` the answers to any data that
    `omni finetune` reads.
    """
    if what != "tiny":
        if baselines:
            raise RequestError("Found --baselines with your own data; they answer `tiny` only.")
        evaluate_data(
            Path(what), model, adapter, metric, reduce, max_new_tokens, schema, limit, as_json
        )
        return
    own = {"--metric": metric, "--max-new-tokens": max_new_tokens, "--schema": schema}
    for option, value in {**own, "--reduce": reduce or None}.items():
        if value is not None:
            raise RequestError(
                f"Found {option} with `tiny`, whose questions say themselves how they are asked "
                "and judged; it is for data of your own."
            )
    check_data(data)
    # Here, because torch and the data code take seconds and `omni --help` shall not.
    from finetune.tiny import cases as questions
    from finetune.tiny import evaluate as tiny
    from omni.assistant import Assistant

    console = Console(stderr=True)
    if baselines:
        _name_missing_baselines(console)
    start = time.perf_counter()
    assistant = Assistant.from_pretrained(model, adapter=adapter)
    cases = questions.make_cases(data, limit)
    with console.status("evaluating") as status:
        scores = tiny.evaluate(
            assistant, cases, lambda name, done: status.update(f"{name}: {done}/{len(cases[name])}")
        )
        seconds = time.perf_counter() - start
        if baselines:
            status.update("asking the baselines")
            _add_baselines(scores, cases, data)
    if as_json:
        written = tiny.as_json(scores, model=assistant.name, seconds=seconds, limit=limit)
        typer.echo(json.dumps(written))
        return
    Console().print(score_table(scores, assistant.name, seconds))


def _name_missing_baselines(console: Console) -> None:
    from finetune.tiny import baselines

    for baseline in baselines.baselines():
        if baseline.missing:
            console.print(f"{baseline.name} is left out; it needs {baseline.missing}")


def _add_baselines(scores: "list[Score]", cases: "dict[str, list[Case]]", data: Path) -> None:
    from finetune.tiny import baselines

    by_ability = {score.ability: score for score in scores}
    for ability, other in baselines.measure(cases, data):
        by_ability[ability].others.append(other)


def score_table(scores: "list[Score]", model: str, seconds: float) -> Table:
    """Lay scores out as a table.

    Args:
        scores: From `finetune.tiny.evaluate.evaluate`.
        model: Name of the model.
        seconds: What the evaluation took.
    """
    from finetune.tiny.abilities import ABILITIES

    table = Table(title=f"{model} on held-out data, {seconds:.0f} s")
    columns = ["ability", "n", "score", "95 % interval", "floor", ""]
    columns += ["others"] if any(score.others for score in scores) else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("ability", "others") else "right")
    for score in scores:
        ability = ABILITIES[score.ability]
        verdict = {True: "[green]ok[/green]", False: "[red]below[/red]", None: ""}[score.holds]
        table.add_row(
            ability.name,
            str(score.count),
            f"{100 * score.mean:.1f} %",
            f"{100 * score.low:.1f} - {100 * score.high:.1f} %",
            score.goal,
            verdict,
            *(["\n".join(_said(other) for other in score.others)] if "others" in columns else []),
        )
    return table


def _said(other: "OtherScore") -> str:
    return f"{other.name} {100 * other.mean:.1f} % ({100 * other.low:.1f} - {100 * other.high:.1f})"


def bench_reduce(
    specs: SpecsOption = None,
    tasks: TasksOption = None,
    data: DataOption = DATA,
    model: ModelOption = None,
    limit: CasesOption = 40,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare reducers: tokens, time and quality, against none, uniform and random.

    A reducer is flagged whose tokens fall but whose time does not, and one no better than random.
    """
    from finetune.bench.tasks import MODALITY_OF, make_tasks

    names = tasks or list(MODALITY_OF)
    for name in names:
        if name not in MODALITY_OF:
            raise RequestError(f"Unknown task {name!r}; expected one of {', '.join(MODALITY_OF)}.")
    check_data(data)
    from finetune.bench.plot import draw_pareto
    from finetune.bench.reduce import run_task, summarise
    from omni.assistant import Assistant
    from token_reduction import build

    chosen = list(specs or SPECS)
    for spec in chosen:
        try:
            build(spec)
        except ValueError as error:
            raise RequestError(str(error)) from error
    assistant = Assistant.from_pretrained(model)
    results: list[list[Row]] = []
    with Console(stderr=True).status("measuring") as status:
        for task in make_tasks(data, names, limit):

            def report(done: int, name: str = task.name) -> None:
                status.update(f"{name}: {done}")

            records = run_task(
                assistant,
                task,
                chosen,
                options={"max_new_tokens": 48},
                report=report,
            )
            results.append(summarise(records))
    rows = [row for task_rows in results for row in task_rows]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"model": assistant.name, **row.to_dict()}) for row in rows]
        (out / "results.jsonl").write_text("\n".join(lines) + "\n")
        for number, (name, task_rows) in enumerate(zip(names, results, strict=True), start=1):
            draw_pareto(task_rows, out / f"{number:02d}-{name}.png")
    if as_json:
        typer.echo(json.dumps({"model": assistant.name, "rows": [row.to_dict() for row in rows]}))
        return
    for task_rows in results:
        Console().print(reduction_table(task_rows))


def check_data(data: Path) -> None:
    """Refuse a folder that is not that of the data.

    Args:
        data: Folder to look into.

    Raises:
        RequestError: It has no `cifar10/`.
    """
    if not (data / "cifar10").is_dir():
        raise RequestError(
            f"{data}: found no cifar10/ there; expected the folder of the training data. "
            "Give it with --data."
        )


def reduction_table(rows: "list[Row]") -> Table:
    """Lay the rows of one task out as a table.

    Args:
        rows: From `finetune.bench.reduce.summarise`.
    """
    table = Table(title=f"{rows[0].task}, {rows[0].cases} cases")
    columns = ("reducer", "tokens", "quality", "95 % interval", "vs none", "first token", "")
    for column in columns:
        table.add_column(column, justify="left" if column in ("reducer", "") else "right")
    for row in rows:
        indent = "  " if row.baseline_of else ""
        table.add_row(
            indent + row.spec,
            f"{row.tokens:.0f}",
            f"{100 * row.quality.mean:.1f}",
            f"{100 * row.quality.low:.1f} - {100 * row.quality.high:.1f}",
            f"{100 * row.against_none.mean:+.1f}",
            f"{row.time_ratio:.2f}x",
            "; ".join(row.flags),
        )
    return table
