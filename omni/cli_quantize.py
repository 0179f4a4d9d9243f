"""``omni quantize``: make a checkpoint smaller and faster on a CPU."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import omni


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="DIR|ID", help="Float checkpoint, or `omni-tiny`.")
    ],
    out: Annotated[Path, typer.Option(help="New directory for the quantised checkpoint.")],
    bits: Annotated[int, typer.Option(help="8, or 4: half as large, less exact.")] = 4,
    group_size: Annotated[
        int,
        typer.Option(help="Weights that share an int4 scale: 32, 64 or 128."),
    ] = 64,
    head_bits: Annotated[int, typer.Option(help="8, or 16 to keep the language head.")] = 8,
    towers: Annotated[
        bool, typer.Option("--towers", help="Towers and projectors in int8 too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn a float checkpoint into an int8 or int4 one for the CPU.

    Reads file by file, so the model need not fit into memory. Stopped, the same command goes on.
    The result is used like any checkpoint, and is mapped into memory instead of being read.

    For example: `omni quantize nemotron-omni --bits 4 --out nemotron-omni-int4`
    """
    from omni.assistant import EMBEDDED_MODEL, EMBEDDED_PATH
    from omni.checkpoint import resolve_checkpoint
    from omni.quantization import QuantizationConfig
    from omni.quantize import quantize_checkpoint

    choices = QuantizationConfig(
        bits=bits, group_size=group_size, head_bits=head_bits, towers=towers
    )
    source = EMBEDDED_PATH if model == EMBEDDED_MODEL else resolve_checkpoint(model)
    console = Console(stderr=True)

    def report(file: Path, done: int, total: int) -> None:
        console.print(f"{file.name}: done, {done} of {total} files")

    summary = quantize_checkpoint(source, out, choices, after_file=report)
    if as_json:
        found = {"out": str(out), **asdict(summary), **choices.to_dict()}
        typer.echo(json.dumps({**found, "version": omni.__version__}))
        return
    typer.echo(
        f"{out}: {summary.bytes / 1e9:.2f} GB of {summary.source_bytes / 1e9:.2f}; "
        f"{summary.quantized / 1e6:,.1f} M weights in int{bits} or int8, "
        f"{summary.kept / 1e6:,.1f} M as they were"
    )
