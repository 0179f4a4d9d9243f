"""Adapters: load one onto its base, and melt it into the weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omni.errors import CheckpointError
from omni.identity import weights_digest

if TYPE_CHECKING:
    from omni.model import OmniModel

ADAPTER_FILE = "omni_adapter.json"
PEFT_FILE = "adapter_config.json"
ALL_WEIGHTS = "weights-"  # begins fingerprints that look at every weight
FINGERPRINT_VALUES = 65_536  # of the embedding table, in a fingerprint of it


def read_adapter(directory: str | Path) -> dict[str, Any]:
    """Read what an adapter says of itself.

    Args:
        directory: Folder with PEFT's files; `omni_adapter.json` may be missing.

    Returns:
        ``base``, ``base_fingerprint``, ``preset``, ``reduction`` and ``router_biases`` (correction
        biases by name, where training has balanced the routers); None where unknown.

    Raises:
        CheckpointError: The folder holds no adapter.
    """
    directory = Path(directory)
    if not (directory / PEFT_FILE).is_file():
        raise CheckpointError(
            f"{directory} has no {PEFT_FILE}; expected a folder that `omni finetune` or PEFT saved "
            "an adapter in. A whole checkpoint is loaded with --model."
        )
    facts: dict[str, Any] = dict.fromkeys(
        ("base", "base_fingerprint", "preset", "reduction", "router_biases")
    )
    facts["base"] = json.loads((directory / PEFT_FILE).read_text()).get("base_model_name_or_path")
    if (directory / ADAPTER_FILE).is_file():
        facts.update(json.loads((directory / ADAPTER_FILE).read_text()))
    return facts


def load_adapter(model: "OmniModel", directory: str | Path) -> Any:
    """Put an adapter into a model, which then answers with it and reduces media as it asks.

    Args:
        model: The base that the adapter was trained on; changed in place.
        directory: Folder with PEFT's files.

    Returns:
        PEFT's wrapper around the model, to merge or switch the adapter off.

    Raises:
        CheckpointError: No adapter there, or one of another base.
    """
    from peft import PeftModel

    facts = read_adapter(directory)
    expected = facts["base_fingerprint"]
    is_offloaded = any(tensor.is_meta for tensor in model.parameters())  # and cannot be compared
    if expected is not None and not is_offloaded:
        name = fingerprint if expected.startswith(ALL_WEIGHTS) else embedding_fingerprint
        if (found := name(model)) != expected:
            raise CheckpointError(
                f"The adapter in {directory} was trained on {facts['base']!r} (fingerprint "
                f"{expected}), but this model has fingerprint {found}. Load that base with --model."
            )
    _set_router_biases(model, facts["router_biases"] or {}, directory)
    try:
        wrapped = PeftModel.from_pretrained(model, str(directory)).eval()
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"The adapter in {directory} does not fit this model: {str(error).splitlines()[0]}"
        ) from error
    model.config.reduction = {**model.config.reduction, **(facts["reduction"] or {})}
    return wrapped


@torch.no_grad()
def _set_router_biases(
    model: "OmniModel", biases: Mapping[str, Sequence[float]], directory: str | Path
) -> None:
    found = dict(model.named_buffers()) | dict(model.named_parameters())
    for name, values in biases.items():
        if name not in found or found[name].shape != (len(values),) or found[name].is_meta:
            raise CheckpointError(
                f"The adapter in {directory} has {len(values)} biases for {name}, for which this "
                "model has no place in memory. Load the base that it was trained on, whole."
            )
        found[name].copy_(torch.tensor(values, dtype=torch.float32))


def fingerprint(model: "OmniModel") -> str:
    """A short name of a checkpoint's weights, whatever the number format they were loaded in."""
    return ALL_WEIGHTS + weights_digest(model, dtype=torch.bfloat16)[:16]


def embedding_fingerprint(model: "OmniModel") -> str:
    """What adapters had before: a short name of the token embeddings alone."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    values = table.detach().flatten()[:FINGERPRINT_VALUES].to("cpu", torch.float16)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
