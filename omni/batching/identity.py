"""What makes two answers the same answer: names of tasks by their content."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omni.batching.spans import Span
from omni.choosing import GenerationOptions
from omni.options import MediaOptions


def settings_of(media: MediaOptions, generation: GenerationOptions) -> dict[str, Any]:
    """Every option that can change an answer, as JSON types."""
    return {
        **asdict(media),
        "reduction": dict(media.reduction),
        "max_memory": media.max_memory_bytes,
        **asdict(generation),
        "schema": as_text(generation.schema),
    }


def as_text(schema: dict[str, Any] | None) -> str | None:
    """A schema as text: the order of its properties is that of the answer, so it counts."""
    return None if schema is None else json.dumps(schema)


def task_key(
    *,
    sha256: str,
    span: Span | None,
    question: str,
    fingerprint: str,
    settings: dict[str, Any],
) -> str:
    """The name of one task: equal exactly when its answer must be equal."""
    return short_hash(
        [sha256, None if span is None else span.to_dict(), question, fingerprint, settings]
    )


def short_hash(parts: Sequence[Any]) -> str:
    """32 hexadecimal digits for any JSON values."""
    text = json.dumps(list(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
