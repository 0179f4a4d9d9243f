"""One answer about a whole item, from the answers about its parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni.batching.spans import Span
from omni.errors import MissingPartsError


def combined_prompt(
    instruction: str,
    question: str,
    parts: Sequence[tuple[Span, Mapping[str, Any]]],
) -> str:
    """The text that asks for one answer from many.

    Args:
        instruction: What to do with the answers.
        question: What was asked about every part.
        parts: Each part, and its result as the journal has it.

    Raises:
        MissingPartsError: A part was not answered: what is left could be a wrong answer.
    """
    failed = [(span, result["error"]) for span, result in parts if result.get("error")]
    if failed:
        span, error = failed[0]
        raise MissingPartsError(
            f"{len(failed)} of {len(parts)} parts were not answered, so nothing was combined; the "
            f"first is {span.label()} ({error['class']}). Their records say why."
        )
    lines = [f"{span.label()}: {result['answer']}" for span, result in parts]
    return "\n".join([instruction, f"Question: {question}", *lines])
