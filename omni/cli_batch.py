"""The command ``omni batch``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import omni
from omni.cli_options import (
    AdapterOption,
    AnswerOption,
    DeviceOption,
    DpiOption,
    FpsOption,
    FramesOption,
    ImageTokensOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    ReduceOption,
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
from omni.errors import OmniError


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
    workers: Annotated[
        int | None,
        typer.Option(
            help="Groups of files answered at the same time (two for a small model), or actors of "
            "--engine ray (two)."
        ),
    ] = None,
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
    image_tokens: ImageTokensOption = None,
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
            {"model": model, "load": {"device": device, "adapter": adapter}}
            if engine == "ray"
            else {"model": load_assistant(model, device, adapter)}
        ),
        engine=engine,
        expand=True,
        out=out,
        per=per,
        chunk_s=chunk_s,
        combine=combine,
        shard=shard,
        batch_size=batch_size,
        workers=workers,
        timeout_s=timeout,
        retry_errors=retry_errors,
        cache=cache,
        cache_size=cache_size,
        **media_options(reduce, fps, num_frames, dpi, image_tokens, sound),
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
        print_json({"out": str(out), **run.summary.to_dict(), "version": omni.__version__})
    else:
        Console().print(summary_table(run.summary, run.source.skipped))
    if run.summary.failed:
        raise typer.Exit(1)
