"""A session on disk: one safetensors file, tensors of the decoder's state and JSON in its header.

The header says which model the state belongs to, since the states of another would be read without
complaint and answer nonsense.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omni.errors import RequestError, SessionError

FORMAT, VERSION = "omni-session", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """What a file holds.

    Attributes:
        model: Name of the model that it was made with.
        identity: Digests of that model's parts; see `omni.identity`.
        state: What the session keeps besides tensors, as JSON types.
        tensors: The decoder's state.
    """

    model: str
    identity: dict[str, str]
    state: dict[str, Any]
    tensors: dict[str, Tensor]


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
