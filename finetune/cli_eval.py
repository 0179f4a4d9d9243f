"""`omni eval DATA`: how good a model's answers are on any data that `omni finetune` reads."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from omni.errors import RequestError

MOST_SHOWN = 5  # wrong answers printed
METRIC, ANSWER_TOKENS = "exact", 64  # unless something else is asked for

AdapterOption = Annotated[
    str | None, typer.Option(help="Folder that `omni finetune` wrote; its base is the default.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        help="How answers are judged: exact, anls, wer, cer, f1, json_anls or none. "
        f"[default: {METRIC}]",
        show_default=False,
    ),
]
ReduceOption = Annotated[
    list[str] | None,
    typer.Option("--reduce", help="Token reduction of a modality, such as video=evs(0.7)."),
]
SchemaOption = Annotated[
    str | None, typer.Option("--schema", help="A JSON Schema file that the answers follow.")
]
AnswerOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help=f"Longest answer in tokens. [default: {ANSWER_TOKENS}]",
        show_default=False,
    ),
]


def evaluate_data(
    data: Path,
    model: str | None,
    adapter: str | None,
    metric: str | None,
    reduce: list[str] | None,
    max_new_tokens: int | None,
    schema: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Measure and print loss and score, and some of the wrong answers."""
    if not Path(str(data).partition("#")[0]).exists():  # behind it, one of several data sets
        raise RequestError(
            f"Found eval {str(data)!r}; expected 'tiny', or a data file or folder that is there."
        )
    from finetune.data import open_dataset
    from finetune.evaluation import choose_samples, evaluate
    from finetune.settings import FinetuneSettings
    from omni.assistant import Assistant
    from omni.options import MediaOptions

    metric = METRIC if metric is None else metric
    max_new_tokens = ANSWER_TOKENS if max_new_tokens is None else max_new_tokens
    settings = FinetuneSettings().changed({"reduction": ";".join(reduce)} if reduce else {})
    dataset = open_dataset(data)
    samples = choose_samples(dataset, limit or len(dataset), seed=0)
    assistant = Assistant.from_pretrained(model, adapter=adapter)
    with Console(stderr=True).status(f"answering {len(samples)} rows"):
        found = evaluate(
            assistant,
            samples,
            metric=metric,
            options=MediaOptions(reduction=settings.reduction),
            max_new_tokens=max_new_tokens,
            schema=schema,
        )
    if as_json:
        bad = [entry.to_dict() for entry in found.bad]
        typer.echo(json.dumps({"model": assistant.name, **found.to_dict(), "bad_rows": bad}))
        return
    typer.echo(f"{assistant.name} on {data}: {len(samples)} rows, {len(found.bad)} of them bad")
    typer.echo(f"loss {found.loss:.4f}")
    if found.score is not None:
        mean, low, high = (100 * value for value in found.score)
        typer.echo(f"{metric} {mean:.1f} % (95 % interval {low:.1f} to {high:.1f})")
    wrong = sorted((e for e in found.examples if e.score < 1), key=lambda e: e.score)
    for example in wrong[:MOST_SHOWN]:
        typer.echo(f"  {example.origin}: {example.found!r} instead of {example.true!r}")
    for entry in found.bad[:MOST_SHOWN]:
        typer.echo(f"  bad: {entry}", err=True)
