"""Options that commands of the ``omni`` program share, and what they do with them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import omni
from omni.errors import RequestError
from omni.start_up import without_collection

if TYPE_CHECKING:
    from omni.assistant import Assistant

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
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Decode by compiled steps, or never; else where there is a C++ compiler, on a CPU.",
    ),
]
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
ImageTokensOption = Annotated[
    int | None,
    typer.Option(
        "--image-tokens",
        help="Most tokens of one picture or page, before reduction; larger ones are made smaller.",
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


def load_assistant(
    model: str | None,
    device: str | None,
    adapter: str | None = None,
    compile_step: bool | None = None,
) -> "Assistant":
    """Load the model; the current folder's own file wins over a hub id of the same name."""
    path = Path(model) if model and Path(model).is_dir() else model
    with without_collection():
        return omni.load(path, device=device, adapter=adapter, compile_step=compile_step)


def media_options(
    reduce: list[str] | None,
    fps: float | None,
    num_frames: int | None,
    dpi: int | None,
    image_tokens: int | None,
    sound: bool,
) -> dict[str, Any]:
    """Media options as `Assistant.ask` takes them."""
    reduction: dict[str, str] = {}
    for item in reduce or []:
        modality, found, spec = item.partition("=")
        if not found or not spec:
            raise RequestError(
                f"--reduce {item!r} is not of the form MODALITY=SPEC, such as 'video=evs(0.7)'."
            )
        if modality.strip() in reduction:
            raise RequestError(
                f"--reduce has {modality.strip()} twice; several reducers are written in one, such "
                "as 'video=keyframes(0.5)|evs(0.5)'."
            )
        reduction[modality.strip()] = spec.strip()
    return {
        "reduction": reduction,
        "fps": fps,
        "num_frames": num_frames,
        "dpi": dpi,
        "image_tokens": image_tokens,
        "audio_in_video": sound,
    }


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))
