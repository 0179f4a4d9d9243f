"""One HTML file that shows what of every input reached the decoder, and what it cost.

The file needs nothing else: pictures are data addresses, styles stand in it, there is no script.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni.errors import RequestError
from omni.evidence import MediaEvidence
from omni.ledger import Ledger
from omni.views import Extent, Request, media_views, render

EXTENT = Extent()  # steps, images and pages that are shown; all of them are in the tables


def check_report_path(path: str | Path, media: Sequence[str] = ()) -> Path:
    """Make sure that a report can be written, before the model runs for it.

    Args:
        path: Where to.
        media: Paths of what is asked about; others of them may be addresses.

    Raises:
        RequestError: The folder does not exist, or the path is a folder or one of the media.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise RequestError(f"The report {path} is a folder; expected the name of a file.")
    if not os.path.isdir(path.parent):
        raise RequestError(
            f"The report {path} should go to the folder {path.parent}, which does not exist. "
            "Make it first, or name another."
        )
    files = filter(os.path.exists, media)
    if os.path.exists(path) and any(os.path.samefile(path, file) for file in files):
        raise RequestError(f"The report {path} is one of the files; name another.")
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
    page = render(
        "report.html.jinja",
        request=request,
        settings=dict(_settings(request.settings)),
        text=text,
        reasoning=reasoning,
        ledger=ledger,
        media=list(media_views(request, evidence, EXTENT)),
        max_pictures=EXTENT.pictures,
    )
    data = page.encode("utf-8", "replace")  # names of files may hold any bytes
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RequestError(f"The report {path} cannot be written: {error.strerror}.") from error


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}={part}" for key, part in value.items())
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if value not in (None, ""):
            yield name, str(value)
