"""Omni models: audio, image, video and text in, text out.

    import omni
    assistant = omni.load()
    print(assistant.ask("What is this?", "photo.jpg"))

What users need is importable from here; heavy modules are loaded on first use.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni.errors import (
    AlignmentError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    CorruptMediaError,
    MediaAccessError,
    MediaError,
    MediaLimitError,
    MediaNotFoundError,
    MediaTimeoutError,
    NotEnoughMemoryError,
    OmniError,
    RequestError,
    SchemaError,
    SessionError,
    UnsupportedMediaError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omni.assistant import Assistant
    from omni.batching import BatchRun
    from omni.batching.cluster import RayRun
    from omni.choosing import GenerationOptions
    from omni.config import OmniConfig
    from omni.conversation import Conversation
    from omni.inputs import OmniInputs
    from omni.ledger import Ledger
    from omni.media import MediaLimits, load_media
    from omni.model import OmniModel
    from omni.options import MediaOptions
    from omni.processor import OmniProcessor
    from omni.reply import Reply
    from omni.session import Session

try:
    __version__ = version("omni-toolkit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Assistant": "omni.assistant",
    "Conversation": "omni.conversation",
    "OmniConfig": "omni.config",
    "GenerationOptions": "omni.choosing",
    "OmniInputs": "omni.inputs",
    "Ledger": "omni.ledger",
    "MediaLimits": "omni.media",
    "load_media": "omni.media",
    "OmniModel": "omni.model",
    "MediaOptions": "omni.options",
    "OmniProcessor": "omni.processor",
    "Reply": "omni.reply",
    "Session": "omni.session",
}

__all__ = [
    "AlignmentError",
    "Assistant",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "Conversation",
    "CorruptMediaError",
    "GenerationOptions",
    "Ledger",
    "MediaAccessError",
    "MediaError",
    "MediaLimitError",
    "MediaLimits",
    "MediaNotFoundError",
    "MediaOptions",
    "MediaTimeoutError",
    "NotEnoughMemoryError",
    "OmniConfig",
    "OmniError",
    "OmniInputs",
    "OmniModel",
    "OmniProcessor",
    "Reply",
    "RequestError",
    "SchemaError",
    "Session",
    "SessionError",
    "UnsupportedMediaError",
    "__version__",
    "batch",
    "load",
    "load_media",
    "load_session",
]


def load(path_or_id: str | Path | None = None, **options: Any) -> "Assistant":
    """Load a checkpoint and get an assistant.

    Args:
        path_or_id: A directory or a hub id; None is the embedded checkpoint, ``omni-tiny``.
        options: ``device``, ``dtype``, ``device_map``, ``revision``; ``adapter``, a folder that
            `omni finetune` wrote, whose base is then the default; ``compile_step``, False
            to decode without compiled steps, True to be warned if there are none
            (docs/decoding.md); ``limits``, ``allowed_roots`` and ``allow_network`` of the media
            gateway.

    Returns:
        An `Assistant`.

    Raises:
        CheckpointError: Files missing or not ours to read.
        NotEnoughMemoryError: The model does not fit; the message has both numbers.
    """
    from omni.assistant import Assistant

    return Assistant.from_pretrained(path_or_id, **options)


def load_session(path: str | Path, assistant: "Assistant | None" = None) -> "Session":
    """Continue a session that `Session.save` wrote.

    Args:
        path: The file.
        assistant: The assistant whose model made it; None is the embedded checkpoint.

    Returns:
        The session; its media are not needed.

    Raises:
        SessionError: The file is damaged or of another version, model or settings.
    """
    return (assistant or load()).load_session(path)


def batch(
    items: "str | Path | Iterable[str | Path | Mapping[str, Any]]",
    questions: "str | Sequence[Any] | Mapping[str, Any]" = (),
    *,
    model: "Assistant | str | Path | None" = None,
    engine: str = "local",
    **options: Any,
) -> "BatchRun | RayRun":
    """Ask the same questions about many files; one bad file is one error, not the end.

        for record in omni.batch("photos", "What is this?", out="answers.jsonl"):
            print(record["item"], record["answer"] or record["error"])

    Records come one after another as they are done, in the order of the items. With ``out`` they
    are also written to a file, and a run that was stopped goes on where it was.

    Args:
        items: A folder, a glob, a media file, a manifest (``.jsonl``, ``.csv``, ``.parquet``), or
            an iterable of paths and of rows such as ``{"path": "a.mp4", "question": "..."}``.
        questions: One or several, or a form: ``{"total": {"question": "...", "type": "number"}}``
            (see docs/batch.md); a row's own question goes before.
        model: An assistant, a directory or a hub id; None is the embedded checkpoint.
        engine: ``local``, or ``ray`` for a pool of actors that each load the model; then
            ``workers`` says how many, and there is no journal (`omni.batching.cluster.RayRun`).
        options: ``out``, ``per``, ``chunk_s``, ``combine``, ``batch_size``, ``workers``,
            ``timeout_s``, ``shard``, ``retry_errors``, ``cache``, ``cache_size`` of
            `omni.batching.BatchRun`, and the options of `Assistant.chat`.

    Returns:
        An iterator of records; `omni.batching.Summary` in its ``summary``.

    Raises:
        RequestError: An option, a pattern or a manifest is wrong. What is wrong with an item
            stands in its records.
    """
    from omni.assistant import Assistant
    from omni.batching import BatchRun

    if engine == "ray":
        from omni.batching.cluster import RayRun

        return RayRun(items, questions, model=model, **options)
    if engine != "local":
        raise RequestError(f"engine is {engine!r}; expected 'local' or 'ray'.")
    assistant = model if isinstance(model, Assistant) else load(model)
    return BatchRun(items, questions, assistant=assistant, **options)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'omni' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
