"""The ``omni`` program: ask, chat, plan, batch, doctor, and the verbs of installed packages.

Data go to stdout, everything else to stderr. An error is one line and exit code 2.
"""

import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

import omni
from omni.allocator import keep_few_kernels, keep_freed_memory
from omni.cli_batch import batch
from omni.cli_options import (
    AdapterOption,
    AnswerOption,
    CompileOption,
    DeviceOption,
    DpiOption,
    FilesArgument,
    FpsOption,
    FramesOption,
    ImageTokensOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    QuestionArgument,
    ReduceOption,
    ReportOption,
    SchemaOption,
    SeedOption,
    SoundOption,
    TemperatureOption,
    ThinkOption,
    TokensOption,
    load_assistant,
    media_options,
    print_json,
)
from omni.cli_quantize import quantize
from omni.errors import OmniError

if TYPE_CHECKING:
    from omni.ledger import Ledger
    from omni.reply import Reply
    from omni.text_reader import TextReader

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
    compile_step: CompileOption = None,
    reduce: ReduceOption = None,
    fps: FpsOption = None,
    num_frames: FramesOption = None,
    dpi: DpiOption = None,
    image_tokens: ImageTokensOption = None,
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

        check_report_path(report, files or ())
    assistant = load_assistant(model, device, adapter, compile_step)
    options = media_options(reduce, fps, num_frames, dpi, image_tokens, sound)
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
        _tell_unfinished(answer.reader)
        return
    reply = assistant.ask(question, *(files or []), **options)
    _tell_lowered(reply.ledger)
    _tell_unfinished(reply)
    if as_json:
        print_json(
            {
                "answer": reply.text,
                "finish_reason": reply.finish_reason,
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
    compile_step: CompileOption = None,
    think: ThinkOption = False,
    max_tokens: TokensOption = None,
    max_memory: MemoryOption = None,
    max_new_tokens: AnswerOption = 256,
) -> None:
    """Talk in the terminal; FILEs are part of the first question.

    An empty line or Ctrl-D ends it. `/file PATH` adds a file to the next question.
    """
    assistant = load_assistant(model, device, adapter, compile_step)
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
            _tell_unfinished(answer.reader)
        except OmniError as error:  # this turn is dropped, the conversation goes on
            typer.echo(f"error: {error}", err=True)
            if waiting:
                dropped = ", ".join(waiting)
                typer.echo(f"Not sent: {dropped}. /file PATH adds those you want again.", err=True)
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
    image_tokens: ImageTokensOption = None,
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
    --num-frames, --dpi, --image-tokens) stays. What cannot fit is refused with the numbers.

    For example: `omni plan "What happens?" clip.mp4 talk.wav --max-tokens 2000`
    """
    assistant = load_assistant(model, None)
    options = media_options(reduce, fps, num_frames, dpi, image_tokens, sound)
    ledger = assistant.plan(
        question,
        *(files or []),
        max_tokens=max_tokens,
        max_memory=max_memory,
        max_new_tokens=max_new_tokens,
        **options,
    )
    if as_json:
        print_json(
            {"ledger": ledger.to_dict(), "model": assistant.name, "version": omni.__version__}
        )
    else:
        from omni.ledger_table import ledger_table

        Console().print(ledger_table(ledger))


@app.command()
def doctor(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Show versions, devices, kernels, decoders, free memory, and how a model is stored."""
    from omni.doctor import examine

    findings = examine(model)
    if as_json:
        print_json({"findings": [f.to_dict() for f in findings], "version": omni.__version__})
        return
    table = Table("", "what", "state", "found", title=f"omni {omni.__version__}")
    previous = ""
    for finding in findings:
        group = "" if finding.group == previous else finding.group
        previous = finding.group
        state = Level.ok if finding.ok else Level.missing
        table.add_row(group, finding.name, state, finding.detail)
    Console().print(table)


app.command()(batch)
app.command()(quantize)


def main() -> None:
    """Run the program; errors of users end in one line and exit code 2."""
    keep_freed_memory()
    keep_few_kernels()
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


def _tell_unfinished(said: "Reply | TextReader") -> None:
    """One line on stderr about an answer that is not all that the model would have said."""
    if said.finish_reason == "length":
        typer.echo("the answer was ended by --max-new-tokens; raise it for more", err=True)
    elif said.reasoning and not said.text:
        typer.echo("the model reasoned and gave no answer; `omni ask --json` shows what", err=True)


def _fail(message: str) -> None:
    line = " ".join(message.split())
    typer.echo(f"error: {line}", err=True)
    sys.exit(2)


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
