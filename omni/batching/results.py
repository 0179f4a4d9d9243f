"""What a batch says of each task: the result, which the journal keeps, and the record around it."""

from collections.abc import Mapping
from typing import Any

from omni.batching.lots import Task
from omni.reply import Reply

RESULT = ("answer", "parsed", "finish_reason", "reasoning", "tokens", "error")


def make_result(reply: Reply) -> dict[str, Any]:
    """What the journal keeps of a reply: all that does not change from run to run."""
    ledger = reply.ledger
    lowered = {change.partition(": ")[2] for change in ledger.lowered}
    return {
        "answer": reply.text,
        "parsed": reply.parsed,
        "finish_reason": reply.finish_reason,
        "reasoning": reply.reasoning,
        "tokens": {
            "prompt": ledger.prompt_tokens,
            "media": ledger.prompt_tokens - ledger.text_tokens,
            "text": ledger.text_tokens,
            "answer": ledger.answer_tokens,
            "lowered": sorted(lowered),
        },
    }


def make_record(task: Task, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a task.

    Args:
        task: The task.
        found: Its result or error, as the journal has it.
    """
    return {
        "item": task.item.name,
        "sha256": task.sha256,
        "span": None if task.span is None else task.span.to_dict(),
        "combined": len(task.parts) or None,
        "field": task.field,
        "question": task.question,
        **{name: found.get(name) for name in RESULT},
        **{name: found[name] for name in ("seed", "model", "versions")},
        "row": dict(task.item.row),
    }
