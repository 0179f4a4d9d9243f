"""One HTML file that shows what of every input reached the decoder, and what it cost.

The file needs nothing else: pictures are data addresses, styles stand in it, there is no script.
`report.html.jinja` lays it out and escapes everything, since names and answers come from outside.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from omni.charts import bars_of_spans, bars_of_steps, overlay, ticks
from omni.errors import RequestError
from omni.evidence import MediaEvidence
from omni.inputs import MediaItem
from omni.ledger import Ledger
from omni.thumbnails import data_uri, frames, spectrogram

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_FRAMES = 24  # steps of one clip that are shown; all of them are in its table
MAX_PICTURES = 60  # images and pages that are shown
FRAME_SIDE, PICTURE_SIDE = 320, 1024  # pixels of the longest side


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a report needs to know of a request besides the reply.

    Attributes:
        question: Text of the last user turn.
        model: What the model is called.
        settings: Options that the answer was made with.
        media: The request's items; their windows are read again for the pictures.
        pixel_mean: Per-channel mean that the vision tower's pixels are normalised with.
        pixel_std: Per-channel standard deviation of the same.
    """

    question: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[MediaItem] = ()
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]


def check_report_path(path: str | Path) -> Path:
    """Make sure that a report can be written, before the model runs for it.

    Raises:
        RequestError: The folder does not exist, or the path is a folder.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise RequestError(f"The report {path} is a folder; expected the name of a file.")
    if not os.path.isdir(path.parent):
        raise RequestError(
            f"The report {path} should go to the folder {path.parent}, which does not exist. "
            "Make it first, or name another."
        )
    return path


def write_report(
    path: str | Path,
    request: Request,
    *,
    text: str,
    reasoning: str,
    ledger: Ledger,
    evidence: Sequence[MediaEvidence],
) -> None:
    """Write the report of one reply.

    Args:
        path: Where to; an existing file is replaced.
        request: The request.
        text: The answer.
        reasoning: What the model thought before.
        ledger: Tokens, bytes and seconds.
        evidence: One entry for each of the request's media.

    Raises:
        RequestError: The path cannot be written.
        MediaError: A file has changed or gone since the request.
    """
    path = check_report_path(path)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"clock": clock, "share": share, "short": short}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        request=request,
        settings=dict(_settings(request.settings)),
        text=text,
        reasoning=reasoning,
        ledger=ledger,
        media=list(_views(request, evidence)),
        max_pictures=MAX_PICTURES,
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"The report {path} cannot be written: {error.strerror}.") from error


def clock(seconds: float, end_s: float = 0.0) -> str:
    """``2.50 s``, or ``1:02.50`` where the medium lasts a minute or more."""
    if max(seconds, end_s) < 60:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"


def share(part: float, whole: float) -> str:
    """``37 %``; a part that is there is never 0 %, and one that is not all never 100 %."""
    percent = round(100 * part / whole) if whole else 0
    if 0 < part < whole:
        percent = min(max(percent, 1), 99)
    return f"{percent} %"


def short(name: str) -> str:
    """A file's name without its folders."""
    return name.rsplit("/", 1)[-1]


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}={part}" for key, part in value.items())
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if value not in (None, ""):
            yield name, str(value)


def _views(request: Request, evidence: Sequence[MediaEvidence]) -> Iterator[dict[str, Any]]:
    """What the template draws of each medium."""
    pictures_left = MAX_PICTURES
    for item, entry in zip(request.media, evidence, strict=True):
        view: dict[str, Any] = {"entry": entry, "facts": item.facts, "end": 0.0, "pictures": []}
        if "timeline" in entry:
            end = entry["timeline"][-1]["seconds"][1] if entry["timeline"] else 0.0
            view |= {"end": end, "ticks": ticks(end)}
        if item.modality == "audio":
            view["spectrogram"] = data_uri(spectrogram(item, view["end"]), longest_side=10**4)
            view["bars"] = bars_of_spans(entry, view["end"])
        elif item.modality == "video":
            view["pictures"] = _pictures(item, entry, request, MAX_FRAMES, FRAME_SIDE)
            view["bars"] = bars_of_steps(entry["steps"], view["end"])
        elif pictures_left:
            view["pictures"] = _pictures(item, entry, request, 1, PICTURE_SIDE)
            pictures_left -= 1
        yield view


def _pictures(
    item: MediaItem, entry: MediaEvidence, request: Request, most: int, side: int
) -> list[dict[str, Any]]:
    """Evenly chosen steps of a medium, each by its first frame, with what to draw over it."""
    steps = entry["steps"]
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int).tolist()
    step_of_frame = {steps[i].get("frames", [1])[0] - 1: steps[i] for i in places}
    region = item.facts.get("region", [0, 0, *entry["size"]])
    return [
        {
            "source": data_uri(picture, side),
            "step": step_of_frame[number],
            "overlay": overlay(step_of_frame[number], entry, region),
        }
        for number, picture in frames(item, step_of_frame, request.pixel_mean, request.pixel_std)
    ]
