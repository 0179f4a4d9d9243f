"""A session on disk: one safetensors file, tensors of the decoder's state and JSON in its header.

The header says which model the state belongs to, since the states of another would be read without
complaint and answer nonsense.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omni.errors import RequestError, SessionError
from omni.model import OmniModel
from omni.processor import CHAT_TEMPLATE, OmniProcessor

FORMAT, VERSION = "omni-session", 1
# Values of each weight that tell one model from another: all of a small one, and of a large one
# enough that any training changes them, without reading 60 GB.
SAMPLED_VALUES = 4096
# Entries of a config that say how it was loaded and not what the model computes.
VOLATILE = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """What a file holds.

    Attributes:
        model: Name of the model that it was made with.
        identity: Digests of that model's parts; see `model_identity`.
        state: What the session keeps besides tensors, as JSON types.
        tensors: The decoder's state.
    """

    model: str
    identity: dict[str, str]
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def model_identity(model: OmniModel, processor: OmniProcessor) -> dict[str, str]:
    """Digests of what an answer depends on: config, weights, tokenizer, template, settings.

    Of every weight its name, shape, number format and up to `SAMPLED_VALUES` evenly spread values
    count; of one that is offloaded to disk, all but the values.
    """
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel() and not tensor.is_meta:
            step = -(-tensor.numel() // SAMPLED_VALUES)
            sample = tensor.detach().flatten()[::step].cpu().contiguous()
            weights.update(sample.view(torch.uint8).numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "config": _digest(_lasting(model.config.to_dict())),
        "tokenizer": _digest(processor.tokenizer.get_vocab()),
        "chat template": _digest(processor.tokenizer.chat_template or CHAT_TEMPLATE.read_text()),
        "settings": _digest(asdict(processor.settings)),
    }


def check_identity(
    path: str | Path, saved: SavedSession, identity: Mapping[str, str], model: str
) -> None:
    """Make sure that a session belongs to a model.

    Raises:
        SessionError: It does not; the message names the parts that differ.
    """
    differing = [name for name, digest in identity.items() if saved.identity.get(name) != digest]
    if differing:
        raise SessionError(
            f"{path} was made with {saved.model!r}, whose {' and '.join(differing)} differ from "
            f"those of {model!r}. Load the model that it was made with, or open the media again."
        )


def write_session(
    path: str | Path,
    tensors: dict[str, Tensor],
    model: str,
    identity: dict[str, str],
    state: dict[str, Any],
) -> None:
    """Write a session beside its place, then move it there.

    Raises:
        RequestError: The file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    text = json.dumps({"model": model, "identity": identity, "state": state})
    metadata = {"format": FORMAT, "version": str(VERSION), "session": text}
    try:
        # safetensors makes files that only their owner can read; take the mode of ordinary ones.
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(mode)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"The session {path} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_session(path: str | Path, device: torch.device) -> SavedSession:
    """Read a session's file.

    Args:
        path: The file.
        device: Where its tensors go.

    Raises:
        SessionError: There is none, it is damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise SessionError(f"There is no session {path}; expected a file from session.save(path).")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise SessionError(
                    f"{path} is a safetensors file but no session; expected one from "
                    "session.save(path)."
                )
            if metadata.get("version") != str(VERSION):
                raise SessionError(
                    f"{path} has version {metadata.get('version')} of the session format, but this "
                    f"toolkit reads version {VERSION}. Open the media again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return SavedSession(**json.loads(metadata["session"]), tensors=tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SessionError(
            f"{path} is not a complete session file ({error}). Save it again, or open the media "
            "again."
        ) from error


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _lasting(values: Any) -> Any:
    """A config without its volatile entries, at every depth."""
    if isinstance(values, dict):
        return {k: _lasting(v) for k, v in values.items() if k not in VOLATILE}
    return [_lasting(v) for v in values] if isinstance(values, list | tuple) else values
