"""`omni finetune DATA`, `omni finetune --explain` and `omni merge`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from omni.errors import RequestError

if TYPE_CHECKING:
    from finetune.recipes.programs import Program
    from finetune.settings import FinetuneSettings
    from finetune.trainable import Explanation

RUN = "run"

DataArgument = Annotated[
    Path | None,
    typer.Argument(metavar="DATA", help="A .jsonl, .json or .tar file, or a folder; see docs."),
]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Settings, such as learning_rate=1e-4."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for state and result.")]
BaseOption = Annotated[
    str | None, typer.Option(help="Checkpoint to start from [default: embedded omni-tiny]")
]
PresetOption = Annotated[
    str | None, typer.Option(help="What is trained, such as lora-all or projectors+lora-mamba.")
]
RecipeOption = Annotated[
    str | None, typer.Option(help="A recipe's name or YAML file: data, preset, settings.")
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option("--eval", help="Held-out data [default: a share of DATA, see eval_share]"),
]
MediaOption = Annotated[
    Path | None,
    typer.Option("--media", help="Folder of relative media paths [default: that of the data]"),
]
StepsOption = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimiser steps.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of order, dropout and new adapters.")]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache-features", help="Folder that keeps the frozen towers' features."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Say what would be trained, and stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class RunByDefault(TyperGroup):
    """`omni finetune DATA` is `omni finetune run DATA`; the other verbs keep their names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in front where the first word is none."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [RUN, *args]
        return super().parse_args(ctx, args)


def run(
    data: DataArgument = None,
    words: WordsArgument = None,
    out: OutOption = None,
    base: BaseOption = None,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    held_out: HeldOutOption = None,
    media: MediaOption = None,
    max_steps: StepsOption = None,
    seed: SeedOption = None,
    cache_features: CacheOption = None,
    resume: ResumeOption = False,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train on conversations with media: an adapter, or parts of the model whole.

    Presets and settings are explained in docs/finetune.md. A run that was stopped goes on with
    --resume, and ends with the weights of one that was not.
    """
    from finetune.recipes import FIELDS, Job, load_recipe
    from finetune.recipes.programs import Program
    from finetune.settings import parse_overrides

    words = list(words or [])
    if data is not None and "=" in str(data) and not data.exists():  # a setting without DATA
        words.insert(0, str(data))
        data = None
    options = {"preset": preset, "max_steps": max_steps, "seed": seed}
    options["cache_features"] = None if cache_features is None else str(cache_features)
    paths = {"data": data, "held_out": held_out, "media": media, "out": out}
    job = load_recipe(recipe) if recipe else Job()
    if isinstance(job, Program):
        given = {**options, **paths, "base": base}
        _run_program(job, parse_overrides(words), given, resume, explain, as_json)
        return
    read = parse_overrides(words)
    job = job.changed(read, base=base, **paths)
    said: dict[str, Any] = {name: value for name, value in read.items() if name not in FIELDS}
    said |= {name: value for name, value in options.items() if value is not None}
    settings = job.settings.changed(said)
    stages = [settings.changed(stage).changed(said) for stage in job.stages] or [settings]
    if explain:
        for stage in stages:
            _explain(job.base, stage, as_json)
        return
    if job.data is None or job.out is None:
        raise RequestError(
            "Found no DATA or no --out; expected for example: omni finetune data.jsonl --out run"
        )
    _train(job, stages, resume, as_json)


def merge_command(
    adapter: Annotated[Path, typer.Argument(help="Folder that `omni finetune` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint.")],
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Melt an adapter into its base and check that scores stay the same."""
    from finetune.merging import merge

    difference = merge(adapter, out, base=base)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "max_logit_difference": difference}))
    else:
        typer.echo(f"{out}: merged; scores differ by at most {difference:.1e} of the largest")


def _run_program(
    program: "Program",
    words: dict[str, str],
    given: dict[str, Any],
    resume: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Run a stage of omni-tiny's own training, with what the command line says in place."""
    names = {"data": "data", "out": "out", "max_steps": "steps", "seed": "seed"}
    for option, value in given.items():
        if value is not None and option not in names:
            raise RequestError(
                f"Found {option} {value}; the recipe runs a program of finetune/tiny, for which "
                "expected is DATA, --out, --max-steps, --seed, --resume or OPTION=VALUE."
            )
    program = program.changed(words)
    program = program.changed({names[o]: v for o, v in given.items() if o in names})
    program = program.changed({"resume": True if resume else None})
    if explain:
        command = program.command()
        typer.echo(json.dumps({"command": command}) if as_json else command)
    else:
        program.run()


def _explain(base: str | None, settings: "FinetuneSettings", as_json: bool) -> None:
    explanation = explain(base, settings)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict()))
        return
    for line in explanation.lines():
        typer.echo(line)


def explain(base: str | None, settings: "FinetuneSettings") -> "Explanation":
    """What a run would train, without weights: the model is built on the meta device.

    Args:
        base: A preset of `omni.presets` such as ``nano-omni-30b-a3b``, a checkpoint directory, or
            None for the embedded one.
        settings: Of the run.
    """
    import torch

    from finetune.trainable import make_trainable
    from omni import presets
    from omni.assistant import EMBEDDED_MODEL, EMBEDDED_PATH
    from omni.checkpoint import read_config, resolve_checkpoint
    from omni.config import OmniConfig
    from omni.model import OmniModel

    if base in presets.PRESETS:
        config: Any = presets.PRESETS[base]()
        if not isinstance(config, OmniConfig):
            raise RequestError(f"{base} is a decoder alone; expected an omni model to fine-tune.")
    else:
        named = None if base == EMBEDDED_MODEL else base
        config = read_config(EMBEDDED_PATH if named is None else resolve_checkpoint(named))
    with torch.device("meta"):
        model = OmniModel(config)
        model = model.to(torch.bfloat16) if base in presets.PRESETS else model
        _, _, explanation = make_trainable(model, settings)
    return explanation


def _train(job: Any, stages: "list[FinetuneSettings]", resume: bool, as_json: bool) -> None:
    from finetune.data import open_dataset
    from finetune.recipes import split
    from finetune.stages import run_stages
    from omni.assistant import EMBEDDED_MODEL, Assistant

    dataset = open_dataset(job.data, media_dir=job.media)
    held_out = None
    if job.held_out is not None:
        held_out = open_dataset(job.held_out, media_dir=job.media)
    first = stages[0]
    if held_out is None and first.eval_share:
        dataset, held_out = split(dataset, first.eval_share, first.seed)
    assistant = Assistant.from_pretrained(job.base)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None)

        def report(row: Any) -> None:
            loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
            text = (
                f"step {row['step']}/{row['of']} loss {loss} "
                f"{row['target_tokens_per_s']:.0f} tokens/s {row['peak_mib']} MiB"
            )
            progress.update(task, description=text, completed=row["step"], total=row["of"])

        results = run_stages(
            assistant.model,
            assistant.processor,
            dataset,
            stages,
            job.out,
            base=job.base or EMBEDDED_MODEL,
            held_out=held_out,
            resume=resume,
            tell=lambda line: progress.console.print(line, highlight=False, soft_wrap=True),
            report=report,
        )
    if not results:
        typer.echo(f"{job.out}: all stages were done before")
        return
    result = results[-1]
    figures = {
        name: found.to_dict()
        for name, found in (("before", results[0].before), ("after", result.after))
        if found is not None
    }
    if as_json:
        bad = [entry.to_dict() for entry in result.bad]
        typer.echo(json.dumps({"out": str(job.out), "steps": result.steps, **figures, "bad": bad}))
        return
    for name, found in figures.items():
        score = found["score"]
        judged = "" if score is None else (
            f", {found['metric']} {100 * score[0]:.1f} % "
            f"({100 * score[1]:.1f} to {100 * score[2]:.1f})"
        )  # fmt: skip
        typer.echo(f"{name}: loss {found['loss']:.4f}{judged}")
    if result.bad:
        typer.echo(f"{len(result.bad)} bad row(s), listed in {job.out / 'bad_rows.jsonl'}")
    from omni.adapters import PEFT_FILE  # here, since it imports torch

    option = "--adapter" if (job.out / PEFT_FILE).exists() else "--model"
    typer.echo(f"{job.out}: done; try: omni ask QUESTION FILE {option} {shlex.quote(str(job.out))}")
