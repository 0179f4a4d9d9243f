"""A recording or a video asked about piece by piece, so that every answer has its time.

The model is given one stretch after another and does not know of the others: times are exact to
the stretch, and what crosses the border of two is heard in halves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omni.assistant import Assistant
from omni.batching.spans import Span, check_chunk, cut, find_spans
from omni.errors import RequestError
from omni.media import Audio, Video


@dataclass(slots=True, kw_only=True)
class Passage:
    """What was answered about one stretch.

    Attributes:
        start_s: Where the stretch begins, in seconds of the source.
        end_s: Where it ends.
        text: The answer; grows while it is streamed.
        is_complete: Whether the answer came to its end.
    """

    start_s: float
    end_s: float
    text: str = ""
    is_complete: bool = False


def transcribe(
    assistant: Assistant, question: str, source: Any, *, chunk_s: float, **options: Any
) -> Iterator[tuple[Passage, ...]]:
    """Ask the same about every stretch of a recording or video.

    Args:
        assistant: Which answers.
        question: What to ask, such as "Which word do you hear?".
        source: A path or an opened medium, as `Assistant.ask` takes it.
        chunk_s: Seconds of a stretch; the last may be shorter.
        options: As in `Assistant.chat`.

    Yields:
        All passages so far, each time that there is more of the last.

    Raises:
        OmniError: As `Assistant.ask`, when pieces are taken; or it is no recording or video, or the
            stretch is shorter than a second.
    """
    check_chunk(chunk_s, f"chunk_s={chunk_s:g}")
    medium = assistant.processor.load_media(source)
    if not isinstance(medium, Audio | Video):
        raise RequestError(
            f"{medium.name} has no time, so it cannot be asked about stretch by stretch. Choose a "
            "recording or a video."
        )
    passages: list[Passage] = []
    for span in find_spans(medium, per_page=False, chunk_s=chunk_s):
        stretch = span or Span(start_s=0.0, end_s=medium.duration_s)
        passages.append(Passage(start_s=stretch.start_s or 0.0, end_s=stretch.end_s or 0.0))
        passage = passages[-1]
        yield tuple(passages)
        for piece in assistant.stream(question, cut(medium, span), **options):
            passage.text += piece
            yield tuple(passages)
        passage.is_complete = True
        yield tuple(passages)
