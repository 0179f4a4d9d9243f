"""What a batch has done so far, in numbers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Summary:
    """Counts of a batch.

    Attributes:
        items: Items begun.
        records: Records given.
        failed: Of those, errors.
        computed: Results of this run; the other records were in the journal, or of equal files.
        errors: Failed records by class of error.
        prompt_tokens: Of all answers.
        answer_tokens: Of all answers.
        seconds: Since the first record was asked for.
    """

    items: int = 0
    records: int = 0
    failed: int = 0
    computed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """Records with an answer."""
        return self.records - self.failed

    def count(self, record: dict[str, Any]) -> None:
        """Take a record into account."""
        self.records += 1
        if record["error"] is not None:
            self.failed += 1
            self.errors[record["error"]["class"]] += 1
        else:
            self.prompt_tokens += record["tokens"]["prompt"]
            self.answer_tokens += record["tokens"]["answer"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "items": self.items,
            "records": self.records,
            "answered": self.answered,
            "failed": self.failed,
            "computed": self.computed,
            "errors": dict(sorted(self.errors.items())),
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "seconds": round(self.seconds, 3),
        }
