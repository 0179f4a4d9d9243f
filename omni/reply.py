"""An answer, with what it took and what it was made from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni.errors import RequestError
from omni.evidence import MediaEvidence
from omni.ledger import Ledger
from omni.report import write_report
from omni.views import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, and what it took.

    Attributes:
        text: What the model says, reasoning left out.
        reasoning: What it thought before, if thinking was on.
        finish_reason: ``stop`` if the model ended it; ``length`` if ``max_new_tokens`` did. By a
            schema it is complete then too, but values may be shorter than the model meant them.
        parsed: With a schema, the answer as JSON types.
        ledger: Tokens, bytes and seconds.
        evidence: For every medium what was kept, merged and dropped, with seconds and boxes; see
            `omni.evidence.MediaEvidence`.
        request: What was asked, for `save_report`. It keeps the media within reach: a list of many
            replies holds their decoded pictures too.
    """

    text: str
    reasoning: str = ""
    finish_reason: str = "stop"
    parsed: Any = None
    ledger: Ledger
    evidence: list[MediaEvidence] = field(default_factory=list)
    request: Request | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def save_report(self, path: str | Path) -> None:
        """Write one HTML file with the answer, the ledger and what was kept of every medium.

        The media are read again for the pictures, so files must still be where they were.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            RequestError: The path cannot be written, or the reply does not know its request.
            MediaError: A medium can no longer be read.
        """
        if self.request is None:
            raise RequestError("This reply has no request, so there is nothing to report on.")
        write_report(
            path,
            self.request,
            text=self.text,
            reasoning=self.reasoning,
            ledger=self.ledger,
            evidence=self.evidence,
        )
