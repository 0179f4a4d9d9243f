"""What makes two answers the same answer: names of models and of tasks by their content."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from omni.assistant import Assistant
from omni.batching.spans import Span
from omni.generation import GenerationOptions
from omni.options import MediaOptions

VALUES_PER_TENSOR = 1_024  # read of each weight tensor, evenly spread: any training changes them
# What a config says of where it came from, and what the weights say themselves.
NOT_COMPUTED = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype"}
)


def model_fingerprint(assistant: Assistant) -> str:
    """A short name of everything in an assistant that shapes its answers.

    It covers weights (1,024 values of every tensor, adapters included), config, tokenizer, chat
    template and processor settings; not the device, and not where the checkpoint lies.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(assistant.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta or not tensor.numel():  # offloaded to disk
            continue
        values = tensor.detach().reshape(-1)
        step = max(len(values) // VALUES_PER_TENSOR, 1)
        digest.update(values[::step].to("cpu", torch.float64).numpy().tobytes())
    tokenizer = assistant.processor.tokenizer
    facts = {
        "config": _what_is_computed(assistant.model.config.to_dict()),
        "settings": asdict(assistant.processor.settings),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "template": tokenizer.chat_template,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def settings_of(media: MediaOptions, generation: GenerationOptions) -> dict[str, Any]:
    """Every option that can change an answer, as JSON types."""
    return {
        **asdict(media),
        "reduction": dict(media.reduction),
        "max_memory": media.max_memory_bytes,
        **asdict(generation),
    }


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


def _what_is_computed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _what_is_computed(v) for k, v in value.items() if k not in NOT_COMPUTED}
    return value
