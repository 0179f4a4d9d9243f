"""What a model is, by its content: answers on the same input are equal where all of it is."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from omni.model import OmniModel
from omni.processor import CHAT_TEMPLATE, OmniProcessor

# Values of each weight that tell one model from another: all of a small one, and of a large one
# enough that any training changes them, without reading 60 GB.
SAMPLED_VALUES = 4096
# Entries of a config that say how it was loaded and not what the model computes.
VOLATILE = frozenset(
    {
        *("_name_or_path", "_commit_hash", "transformers_version", "architectures"),
        *("dtype", "torch_dtype"),
    }
)


def model_identity(model: OmniModel, processor: OmniProcessor) -> dict[str, str]:
    """Digests of what an answer depends on: config, weights, tokenizer, template, settings.

    Of every weight its name, shape, number format and up to `SAMPLED_VALUES` evenly spread values
    count; of one that is offloaded to disk, all but the values.
    """
    return {
        "weights": weights_digest(model),
        "config": _digest(_lasting(model.config.to_dict())),
        "tokenizer": _digest(processor.tokenizer.get_vocab()),
        "chat template": _digest(processor.tokenizer.chat_template or CHAT_TEMPLATE.read_text()),
        "settings": _digest(asdict(processor.settings)),
    }


def weights_digest(model: nn.Module, *, dtype: torch.dtype | None = None) -> str:
    """A digest of a model's weights, by which `model_identity` knows them.

    Args:
        model: Any module.
        dtype: Round floats to this first, so that the number format in which weights were loaded
            does not count.
    """
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        weights.update(f"{name} {tuple(tensor.shape)} {kind}".encode())
        if tensor.numel() and not tensor.is_meta:
            step = -(-tensor.numel() // SAMPLED_VALUES)
            sample = tensor.detach().flatten()[::step].to("cpu", kind).contiguous()
            weights.update(sample.view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def fingerprint(model: OmniModel, processor: OmniProcessor) -> str:
    """The identity as one short name, 16 hexadecimal digits."""
    return _digest(model_identity(model, processor))[:16]


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _lasting(values: Any) -> Any:
    """A config without its volatile entries, at every depth."""
    if isinstance(values, dict):
        return {k: _lasting(v) for k, v in values.items() if k not in VOLATILE}
    return [_lasting(v) for v in values] if isinstance(values, list | tuple) else values
