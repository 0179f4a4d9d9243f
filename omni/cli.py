"""The ``omni`` program: ask, chat, plan, batch, doctor, and the verbs of installed packages.

Data go to stdout, everything else to stderr. An error is one line and exit code 2.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import omni
from omni.allocator import keep_freed_memory
from omni.cli_quantize import quantize
from omni.errors import OmniError, RequestError

if TYPE_CHECKING:
    from omni.assistant import Assistant
    from omni.ledger import Ledger

app = typer.Typer(
    name="omni",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Ask a model about images, videos, recordings and documents; offline, on this machine.\n\n"
        'Start with: `omni ask "What is in this picture?" photo.jpg`. '
        "Without --model the embedded omni-tiny answers: small, narrow, made for trying things out."
    ),
)

COMMANDS_GROUP = "omni.commands"  # entry points: name -> register(app)

QuestionArgument = Annotated[str, typer.Argument(help="What you want to know.")]
FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE...", help="Images, videos, recordings, PDFs; any number, any mix."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="Checkpoint directory or hub id [default: embedded omni-tiny]")
]
AdapterOption = Annotated[
    str | None,
    typer.Option(help="Folder that `omni finetune` wrote; its base is then the default model."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: cpu]")]
ReduceOption = Annotated[
    list[str] | None,
    typer.Option("--reduce", help="Token reduction of a modality, such as video=evs(0.7)."),
]
FpsOption = Annotated[float | None, typer.Option(help="Frames sampled per second of video.")]
FramesOption = Annotated[int | None, typer.Option("--num-frames", help="Most frames of one video.")]
DpiOption = Annotated[int | None, typer.Option(help="Resolution at which pages are rendered.")]
SoundOption = Annotated[bool, typer.Option("--sound", help="Listen to videos' sound tracks too.")]
ThinkOption = Annotated[bool, typer.Option("--think", help="Let the model reason first.")]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        help="Most tokens of prompt and answer together; to fit, reduction rates, then frames, "
        "then resolution of all files are lowered.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Most working memory besides weights and opened files, such as 8GB or 500MiB; "
        "made to fit likewise.",
    ),
]
AnswerOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 gives the same answer every time.")]
SeedOption = Annotated[int, typer.Option(help="Seed of sampling, when the temperature is above 0.")]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE.html", help="Write what was kept of every input as one HTML file."
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MODULE:CLASS",
        help="JSON Schema file, or pydantic model, that each answer keeps to; answers are JSON.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Level(StrEnum):
    """How `doctor` shows a finding."""

    ok = "[green]ok[/green]"
    missing = "[red]no[/red]"


@app.command()
def ask(
    question: QuestionArgument,
    files: FilesArgument = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    reduce: ReduceOption = None,
    fps: FpsOption = None,
    num_frames: FramesOption = None,
    dpi: DpiOption = None,
    sound: SoundOption = False,
    think: ThinkOption = False,
    max_tokens: TokensOption = None,
    max_memory: MemoryOption = None,
    max_new_tokens: AnswerOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    schema: SchemaOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about files."""
    if report is not None:
        from omni.report import check_report_path

        check_report_path(report)
    assistant = _load(model, device, adapter)
    options = _options(reduce, fps, num_frames, dpi, sound)
    options |= {
        "thinking": think,
        "max_tokens": max_tokens,
        "max_memory": max_memory,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "schema": schema,
    }
    if not as_json and report is None:
        answer = assistant.stream(question, *(files or []), **options)
        _tell_lowered(answer.plan)
        for piece in answer:
            typer.echo(piece, nl=False)
        typer.echo()
        return
    reply = assistant.ask(question, *(files or []), **options)
    _tell_lowered(reply.ledger)
    if as_json:
        _print_json(
            {
                "answer": reply.text,
                **({"reasoning": reply.reasoning} if think else {}),
                **({"parsed": reply.parsed} if schema is not None else {}),
                "ledger": reply.ledger.to_dict(),
                **({"report": str(report)} if report is not None else {}),
                "model": assistant.name,
                "version": omni.__version__,
            }
        )
    else:
        typer.echo(reply.text)
    if report is not None:
        reply.save_report(report)


@app.command()
def chat(
    files: FilesArgument = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    think: ThinkOption = False,
    max_tokens: TokensOption = None,
    max_memory: MemoryOption = None,
    max_new_tokens: AnswerOption = 256,
) -> None:
    """Talk in the terminal; FILEs are part of the first question.

    An empty line or Ctrl-D ends it. `/file PATH` adds a file to the next question.
    """
    assistant = _load(model, device, adapter)
    messages: list[dict[str, Any]] = []
    waiting: list[str] = list(files or [])
    typer.echo(
        f"{assistant.name} is listening. /file PATH adds a file; an empty line ends.", err=True
    )
    while line := _read_line():
        if line.startswith("/file "):
            waiting.append(line.removeprefix("/file ").strip())
            continue
        parts: list[dict[str, Any]] = [{"type": "media", "media": file} for file in waiting]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": line}]}
        try:
            answer = assistant.stream_chat(
                [*messages, turn],
                thinking=think,
                max_tokens=max_tokens,
                max_memory=max_memory,
                max_new_tokens=max_new_tokens,
            )
            _tell_lowered(answer.plan)
            said = ""
            for piece in answer:
                said += piece
                typer.echo(piece, nl=False)
            typer.echo()
        except OmniError as error:  # this turn is dropped, the conversation goes on
            typer.echo(f"error: {error}", err=True)
            waiting = []
            continue
        messages += [turn, {"role": "assistant", "content": said}]
        waiting = []


@app.command()
def plan(
    question: QuestionArgument,
    files: FilesArgument = None,
    model: ModelOption = None,
    reduce: ReduceOption = None,
    fps: FpsOption = None,
    num_frames: FramesOption = None,
    dpi: DpiOption = None,
    sound: SoundOption = False,
    max_tokens: TokensOption = None,
    max_memory: MemoryOption = None,
    max_new_tokens: AnswerOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Count tokens, FLOPs and memory of a request without running the model.

    Follows each file from frames and patches through every reduction to its prompt tokens. With
    --max-tokens or --max-memory it shows how the request is made to fit, and `omni ask` with the
    same options does just that: first reduction rates are raised, up to 90 %, then videos get
    fewer frames, then pictures and pages fewer patches. What you set yourself (--reduce, --fps,
    --num-frames, --dpi) stays. What cannot fit is refused with the numbers.

    For example: `omni plan "What happens?" clip.mp4 talk.wav --max-tokens 2000`
    """
    assistant = _load(model, None)
    options = _options(reduce, fps, num_frames, dpi, sound)
    ledger = assistant.plan(
        question,
        *(files or []),
        max_tokens=max_tokens,
        max_memory=max_memory,
        max_new_tokens=max_new_tokens,
        **options,
    )
    if as_json:
        _print_json(
            {"ledger": ledger.to_dict(), "model": assistant.name, "version": omni.__version__}
        )
    else:
        from omni.ledger_table import ledger_table

        Console().print(ledger_table(ledger))


@app.command()
def batch(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Folders (searched for media), globs, media files, or manifests: .jsonl, .csv "
            "or .parquet with a column path and optionally question.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Result file, .jsonl or .parquet; a journal grows beside it.")
    ],
    question: Annotated[
        list[str] | None,
        typer.Option("--question", help="What to ask about every item; may be given repeatedly."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="A form: names of fields with their questions."),
    ] = None,
    per: Annotated[str, typer.Option(help="item, or page: ask about each page.")] = "item",
    chunk: Annotated[
        str | None,
        typer.Option(help="Ask about each stretch of recordings and videos, such as 60s."),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What to do with the answers of an item's pages or stretches; each question is "
            "then asked once more, about them.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts, by the items' names."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Files of similar length whose questions run together.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a decoder that gives nothing is stopped.")
    ] = 120.0,
    engine: Annotated[
        str, typer.Option(help="local, or ray: a pool of actors on a Ray cluster; no journal.")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Actors of --engine ray.")] = 2,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try again what failed in an earlier run.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep what the encoders gave, for other questions and runs."
        ),
    ] = None,
    cache_size: Annotated[
        str, typer.Option(help="Most that the cache may hold; the oldest goes first.")
    ] = "10GB",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    reduce: ReduceOption = None,
    fps: FpsOption = None,
    num_frames: FramesOption = None,
    dpi: DpiOption = None,
    sound: SoundOption = False,
    think: ThinkOption = False,
    max_tokens: TokensOption = None,
    max_memory: MemoryOption = None,
    max_new_tokens: AnswerOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    schema: SchemaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the same questions about many files; results as JSONL or Parquet.

    Stop it whenever you like, even with kill -9: the same command goes on where it was, computes
    nothing twice, and ends with the same bytes. A file that is damaged, missing or hangs its
    decoder becomes one record with an error. Exit code 0: all answered; 1: some failed; 2: the
    command is wrong.

    For example: `omni batch photos --question "What is this?" --out answers.jsonl`

    A form, form.yaml, asks for several fields, each with its type:
    `omni batch receipts --questions form.yaml --out fields.jsonl`

        total: {question: "What is the total?", type: number}
        paid: {question: "How was it paid?", choices: [cash, card]}
    """
    from omni.batching.questions import read_form
    from omni.batching.spans import parse_seconds

    chunk_s = None if chunk is None else parse_seconds(chunk)
    run = omni.batch(
        paths,
        [*(question or ()), *(read_form(questions) if questions is not None else ())],
        **(
            {"model": model, "load": {"device": device, "adapter": adapter}, "workers": workers}
            if engine == "ray"
            else {"model": _load(model, device, adapter)}
        ),
        engine=engine,
        expand=True,
        out=out,
        per=per,
        chunk_s=chunk_s,
        combine=combine,
        shard=shard,
        batch_size=batch_size,
        timeout_s=timeout,
        retry_errors=retry_errors,
        cache=cache,
        cache_size=cache_size,
        **_options(reduce, fps, num_frames, dpi, sound),
        thinking=think,
        max_tokens=max_tokens,
        max_memory=max_memory,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        schema=schema,
    )
    from omni.batching.progress import run_shown, summary_table

    try:
        run_shown(run, Console(stderr=True))
    except KeyboardInterrupt:
        run.close()
        raise OmniError("interrupted; the same command goes on from here.") from None
    if as_json:
        _print_json({"out": str(out), **run.summary.to_dict(), "version": omni.__version__})
    else:
        Console().print(summary_table(run.summary, run.source.skipped))
    if run.summary.failed:
        raise typer.Exit(1)


@app.command()
def doctor(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Show versions, devices, kernels, decoders, free memory, and how a model is stored."""
    from omni.doctor import examine

    findings = examine(model)
    if as_json:
        _print_json({"findings": [f.to_dict() for f in findings], "version": omni.__version__})
        return
    table = Table("", "what", "state", "found", title=f"omni {omni.__version__}")
    previous = ""
    for finding in findings:
        group = "" if finding.group == previous else finding.group
        previous = finding.group
        state = Level.ok if finding.ok else Level.missing
        table.add_row(group, finding.name, state, finding.detail)
    Console().print(table)


app.command()(quantize)


def main() -> None:
    """Run the program; errors of users end in one line and exit code 2."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for entry in entry_points(group=COMMANDS_GROUP):
        register: Callable[[typer.Typer], None] = entry.load()
        register(app)
    try:
        app()
    except OmniError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        sys.exit(1)


def _tell_lowered(ledger: "Ledger") -> None:
    """One line on stderr about what a budget has changed."""
    if ledger.lowered:
        typer.echo(f"lowered to fit the budget: {'; '.join(ledger.lowered)}", err=True)


def _fail(message: str) -> None:
    line = " ".join(message.split())
    typer.echo(f"error: {line}", err=True)
    sys.exit(2)


def _load(model: str | None, device: str | None, adapter: str | None = None) -> "Assistant":
    """Load the model; the current folder's own file wins over a hub id of the same name."""
    path = Path(model) if model and Path(model).is_dir() else model
    return omni.load(path, device=device, adapter=adapter)


def _options(
    reduce: list[str] | None,
    fps: float | None,
    num_frames: int | None,
    dpi: int | None,
    sound: bool,
) -> dict[str, Any]:
    """Media options as `Assistant.ask` takes them."""
    reduction = {}
    for item in reduce or []:
        modality, found, spec = item.partition("=")
        if not found or not spec:
            raise RequestError(
                f"--reduce {item!r} is not of the form MODALITY=SPEC, such as 'video=evs(0.7)'."
            )
        reduction[modality.strip()] = spec.strip()
    return {
        "reduction": reduction,
        "fps": fps,
        "num_frames": num_frames,
        "dpi": dpi,
        "audio_in_video": sound,
    }


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
