"""Parts of a page: the plan before a question, the ledger and the evidence after it, previews.

Each is one HTML fragment inside an element of class ``evidence``, styled by `STYLE` and without
script. Buttons of class ``seek`` carry ``data-seconds``; a page with a player makes them jump.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from omni.budget import readable_bytes
from omni.ledger import Ledger, readable_flops
from omni.pace import Estimate
from omni.reply import Reply
from omni.views import TEMPLATES, Extent, Request, media_views, previews, render, share

STYLE = (TEMPLATES / "evidence.css").read_text(encoding="utf-8")


@runtime_checkable
class Supporting(Protocol):
    """What is drawn of an `omni.attribution.Support`."""

    @property
    def name(self) -> str:
        """Of the page."""

    @property
    def times(self) -> float:
        """How many times less likely the answer is without it."""

    @property
    def is_source(self) -> bool:
        """Whether it is marked."""


@runtime_checkable
class Timed(Protocol):
    """What is drawn of an `omni.transcript.Passage`."""

    start_s: float
    end_s: float
    text: str
    is_complete: bool


EXTENT = Extent(frames=24, pictures=40, frame_side=240, picture_side=640)


def plan_panel(plan: Ledger, estimate: Estimate | None = None) -> str:
    """What a request will cost: tokens of each item and stage, work, memory, and time if known.

    Args:
        plan: A ledger without times.
        estimate: From `omni.pace.Pace`; None before the first answer.
    """
    return render("plan.html.jinja", ledger=plan, estimate=estimate)


def message_panel(text: str) -> str:
    """A sentence where a panel would be: what is missing, or why there is none."""
    return render("message.html.jinja", text=text)


def ledger_panel(ledger: Ledger) -> str:
    """What a request did cost.

    Args:
        ledger: Of a reply.
    """
    return render("ledger.html.jinja", ledger=ledger)


def preview_panel(request: Request) -> str:
    """The media of a request as the model will get them: pages, frames with times, sound.

    Args:
        request: Of a stream that has not run.

    Raises:
        MediaError: A file cannot be decoded.
    """
    views = list(previews(request, EXTENT))
    return render("preview.html.jinja", media=views, extent=EXTENT)


def evidence_panel(reply: Reply, supports: Sequence[Supporting] | None = None) -> str:
    """What of every medium reached the decoder, drawn over its pages, frames and sound.

    Args:
        reply: With the request that it answers.
        supports: What each page contributes to the answer, from `omni.attribution.media_support`;
            the pages that it comes from are marked.

    Raises:
        MediaError: A file has changed or gone since.
    """
    media = [] if reply.request is None else media_views(reply.request, reply.evidence, EXTENT)
    found = None if supports is None else {support.name: support for support in supports}
    return render("shown.html.jinja", media=list(media), extent=EXTENT, supports=found)


def transcript_panel(passages: Sequence[Timed]) -> str:
    """Answers by time, as `omni.transcript.transcribe` yields them; a click moves the player."""
    end_s = max((passage.end_s for passage in passages), default=0.0)
    return render("transcript.html.jinja", passages=passages, end=end_s)


def compare_panel(a: Reply, b: Reply) -> str:
    """Two replies to the same question beside each other: tokens, work, memory, seconds.

    Args:
        a: The first.
        b: The second; its share of the first is stated.
    """
    rows = [
        {"name": name, "a": write(one), "b": write(two), "ratio": share(two, one) if one else "n/a"}
        for (name, write, one), (_, _, two) in zip(_costs(a.ledger), _costs(b.ledger), strict=True)
    ]
    return render("compare.html.jinja", same=a.text.strip() == b.text.strip(), rows=rows)


def _costs(ledger: Ledger) -> list[tuple[str, Callable[[Any], str], float]]:
    """What is compared, and how it is written."""
    media = sum(entry.stages[-1].count for entry in ledger.media)
    return [
        ("tokens of the prompt", "{:,}".format, ledger.prompt_tokens),
        ("of them media", "{:,}".format, media),
        ("encoders", readable_flops, ledger.tower_flops),
        ("reading the prompt", readable_flops, ledger.prefill_flops),
        ("working memory", readable_bytes, ledger.memory_bytes),
        ("tokens of the answer", "{:,}".format, ledger.answer_tokens),
        ("seconds in all", "{:.2f}".format, ledger.seconds.get("total", 0.0)),
    ]
