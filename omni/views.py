"""What is drawn of a request's media: pictures with overlays, bars along time, spectrograms.

Reports and the web demo show the same views; the templates beside this module lay them out and
escape everything, since names and answers come from outside.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from omni.budget import readable_bytes
from omni.charts import CHART_WIDTH, bars_of_spans, bars_of_steps, overlay, ticks, waveform
from omni.evidence import MediaEvidence
from omni.inputs import MediaItem
from omni.ledger import readable, readable_flops
from omni.thumbnails import data_uri, frames, spectrogram

TEMPLATES = Path(__file__).with_name("templates")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is drawn; what is not drawn stands in the tables all the same.

    Attributes:
        frames: Steps of one clip.
        pictures: Images and pages of the request.
        frame_side: Pixels of a frame's longest side.
        picture_side: Pixels of the longest side of an image or page.
    """

    frames: int = 24
    pictures: int = 60
    frame_side: int = 320
    picture_side: int = 1024


def media_views(
    request: Request, evidence: Sequence[MediaEvidence], extent: Extent
) -> Iterator[dict[str, Any]]:
    """What the templates draw of each medium after an answer.

    Args:
        request: The request.
        evidence: One entry for each of its media.
        extent: How much is drawn.

    Raises:
        MediaError: A file has changed or gone since the request.
    """
    pictures_left = extent.pictures
    for item, entry in zip(request.media, evidence, strict=True):
        view: dict[str, Any] = {"entry": entry, "facts": item.facts, "end": 0.0, "pictures": []}
        if "timeline" in entry:
            end = entry["timeline"][-1]["seconds"][1] if entry["timeline"] else 0.0
            view |= {"end": end, "ticks": ticks(end)}
        if item.modality == "audio":
            view |= _sound(item, view["end"])
            view["bars"] = bars_of_spans(entry, view["end"])
        elif item.modality == "video":
            view["pictures"] = _pictures(item, entry, request, extent.frames, extent.frame_side)
            view["bars"] = bars_of_steps(entry["steps"], view["end"])
        elif pictures_left:
            view["pictures"] = _pictures(item, entry, request, 1, extent.picture_side)
            pictures_left -= 1
        yield view


def previews(request: Request, extent: Extent) -> Iterator[dict[str, Any]]:
    """What the templates draw of each medium before an answer: nothing has been dropped yet.

    Args:
        request: The request.
        extent: How much is drawn.

    Raises:
        MediaError: A file cannot be decoded.
    """
    pictures_left = extent.pictures
    for item in request.media:
        view: dict[str, Any] = {"item": item, "end": 0.0, "pictures": []}
        if item.time_spans is not None:
            end = item.facts.get("duration_s", item.time_spans[-1][1])
            view |= {"end": end, "ticks": ticks(end)}
        if item.modality == "audio":
            view |= _sound(item, view["end"])
        elif item.modality == "video":
            places = _evenly(item.grid[0], extent.frames)
            view["pictures"] = [
                {
                    "source": data_uri(picture, extent.frame_side),
                    "size": picture.size,
                    "frame": number + 1,
                    "seconds": item.time_spans[number] if item.time_spans else (0.0, 0.0),
                }
                for number, picture in _frames(item, places, request)
            ]
        elif pictures_left:
            size = item.facts.get("width", item.grid[2]), item.facts.get("height", item.grid[1])
            [(_, picture)] = _frames(item, [0], request)
            view["pictures"] = [{"source": data_uri(picture, extent.picture_side), "size": size}]
            pictures_left -= 1
        yield view


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package.

    Args:
        template: Its file name.
        values: What it uses; all of it is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "share": share, "short": short, "about": about}
    environment.filters["without"] = without
    environment.filters |= {"setting": readable, "bytes": readable_bytes, "flops": readable_flops}
    return environment.get_template(template).render(**values)


def clock(seconds: float, end_s: float = 0.0) -> str:
    """``2.50 s``, or ``1:02.50`` where the medium lasts a minute or more."""
    seconds = round(seconds, 2)  # first: 59.996 s are a minute
    if max(seconds, end_s) < 60:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"


def about(seconds: float) -> str:
    """An estimate: ``about 2.5 s``, ``about 40 s``, ``about 3 min``."""
    if seconds < 0.1:
        return "less than 0.1 s"
    if seconds < 100:
        return f"about {seconds:.{1 if seconds < 10 else 0}f} s"
    return f"about {seconds / 60:.0f} min"


def share(part: float, whole: float) -> str:
    """``37 %``; a part that is there is never 0 %, and one that is not all never 100 %."""
    percent = round(100 * part / whole) if whole else 0
    if 0 < part < whole:
        percent = min(max(percent, 1), 99)
    return f"{percent} %"


def without(times: float) -> str:
    """How a page matters to an answer: ``without it the answer is 12 times less likely``."""
    if times >= 1e6:
        return "without it the answer is over a million times less likely"
    if times >= 1.05:
        digits = 0 if times >= 10 else 1
        return f"without it the answer is {times:,.{digits}f} times less likely"
    if times <= 0.95:
        return "without it the answer is more likely"
    return "without it the answer is as likely"


def short(name: str) -> str:
    """A file's name without its folders."""
    return name.rsplit("/", 1)[-1]


def _sound(item: MediaItem, end_s: float) -> dict[str, str]:
    """Spectrogram and waveform of a recording, of one width."""
    path = "" if item.envelope is None else waveform(item.envelope(CHART_WIDTH))
    picture = data_uri(spectrogram(item, end_s), longest_side=10**4)
    return {"spectrogram": picture, "waveform": path}


def _pictures(
    item: MediaItem, entry: MediaEvidence, request: Request, most: int, side: int
) -> list[dict[str, Any]]:
    """Evenly chosen steps of a medium, each by its first frame, with what to draw over it."""
    steps = entry["steps"]
    places = _evenly(len(steps), most)
    step_of_frame = {steps[i].get("frames", [1])[0] - 1: steps[i] for i in places}
    region = item.facts.get("region", [0, 0, *entry["size"]])
    return [
        {
            "source": data_uri(picture, side),
            "step": step_of_frame[number],
            "overlay": overlay(step_of_frame[number], entry, region),
        }
        for number, picture in _frames(item, list(step_of_frame), request)
    ]


def _frames(item: MediaItem, wanted: Sequence[int], request: Request) -> Iterator[tuple[int, Any]]:
    return frames(item, wanted, request.pixel_mean, request.pixel_std)


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, the first and the last among them."""
    places: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return places
