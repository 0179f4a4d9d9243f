"""Reading and writing checkpoints: our saves, transformers' saves, and the released layout.

All three are safetensors in the released layout (`omni/weights_layout.py`); pickled files
and remote code are never touched. Loading is: `resolve_checkpoint` -> `read_config` ->
build the model on the meta device -> `materialise`, which plans every tensor from the file
headers, refuses what does not match, and then reads each piece into its final place, so
that nothing is held twice.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from accelerate.utils import convert_file_size_to_int
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from omni.config import OmniConfig
from omni.config_names import VISION_LIFTED
from omni.errors import CheckpointError, RequestError
from omni.loading import main_dtype, materialise
from omni.quantization.recipe import METHOD, QuantizationConfig, is_quantized
from omni.weights_files import INDEX_NAME, WEIGHTS_FILE, quantised_error
from omni.weights_layout import Piece, WeightsLayout

__all__ = ["materialise", "read_config", "resolve_checkpoint", "save_checkpoint"]

# Everything a checkpoint consists of, and no code and no pickles.
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.md")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
EMBEDDED_MODELS = Path(__file__).parent / "weights"
"""The models that come with the package, a folder each."""
PUBLISHED_ARCHITECTURE = "NemotronH_Omni_Reasoning_V3"


def resolve_checkpoint(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Find a checkpoint directory, downloading a hub id when that is allowed.

    Args:
        path_or_id: A directory, the name of an embedded model, or a hub id such as `nvidia/...`.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Use only what was downloaded before. None follows the settings of
            huggingface_hub (`HF_HUB_OFFLINE`).
        cache_dir: Where huggingface_hub keeps downloads; None is its default.
        token: Access token for gated repositories, as huggingface_hub takes it.

    Returns:
        A local directory.

    Raises:
        CheckpointError: Neither a directory nor an embedded model, nor a repository that can be
            had.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file; a checkpoint is a directory with config.json and safetensors. "
            f"Give {path.parent}."
        )
    name = str(path_or_id)
    embedded = sorted(config.parent.name for config in EMBEDDED_MODELS.glob("*/config.json"))
    if path_or_id in embedded:  # no Path: that is a folder
        return EMBEDDED_MODELS / name
    is_bare = isinstance(path_or_id, str) and path.name == name
    hint = _name_embedded(name, embedded) if is_bare else ""
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(
            f"{hint}{name}: no such directory, and not a hub id of the form owner/name. Check the "
            "path."
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=bool(local_files_only),
                allow_patterns=list(DOWNLOADED),
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{hint}{name!r} is neither a directory here nor a repository on the hub"
            f"{f' with revision {revision!r}' if revision else ''} ({_first_line(error)}). Check "
            "the spelling; for private or gated repositories log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{hint}{name!r} is not a directory here and was not downloaded before, and the hub "
            "is not reachable or switched off (local_files_only, HF_HUB_OFFLINE). Either give the "
            f"path of a local copy, or go online once: hf download {name}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{hint}{name!r} could not be downloaded ({_first_line(error)}). Try again, or give "
            "the path of a local copy."
        ) from error


def _name_embedded(name: str, embedded: list[str]) -> str:
    """What to say first of a name without an owner: which models need neither folder nor hub."""
    known = ", ".join(map(repr, embedded))
    if get_close_matches(name.lower(), embedded, cutoff=0.5):
        return f"There is no embedded model {name!r}; did you mean {known}? "
    return f"There is no embedded model {name!r}, only {known}. "


def read_config(directory: str | Path) -> OmniConfig:
    """Read the config of a checkpoint directory, whatever names it uses.

    What old releases keep in `preprocessor_config.json` only (grid bounds, normalisation)
    is taken from there.

    Args:
        directory: As `resolve_checkpoint` returns it.

    Raises:
        CheckpointError: No `config.json`, not JSON, or a quantised checkpoint.
        ConfigError: Its fields are not those of an omni model.
    """
    directory = Path(directory)
    fields = _read_json(directory / "config.json")
    if fields is None:
        raise CheckpointError(
            f"{directory}: found no config.json; expected a directory saved by OmniModel, by "
            "transformers, or downloaded from the hub. Check the path."
        )
    text = fields.get("text_config") or fields.get("llm_config") or {}
    for part in (fields, text):
        if quantization := part.get("quantization_config"):
            method = quantization.get("quant_method", "unnamed")
            if method != METHOD:
                raise quantised_error(directory, f"quantization_config, method {method}")
            QuantizationConfig.read(quantization)
    if (quantised := _read_json(directory / "hf_quant_config.json")) is not None:
        method = quantised.get("quantization", {}).get("quant_algo", "unnamed")
        raise quantised_error(directory, f"hf_quant_config.json, method {method}")
    vision = fields.get("vision_config") or {}
    args = vision.get("args") or {}
    beside = _read_json(directory / "preprocessor_config.json") or {}
    for name in VISION_LIFTED:
        if name in beside and not any(name in part for part in (fields, vision, args)):
            fields[name] = beside[name]
    config = OmniConfig.from_dict(fields)
    config.name_or_path = str(directory)
    return config


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_decode_float)
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}). Restore the file."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found a JSON {type(value).__name__}; expected an object.")
    return value


def _decode_float(value: dict[str, Any]) -> Any:
    """Read the notation in which transformers writes infinities to JSON."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def save_checkpoint(
    model: nn.Module,
    directory: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights and config in the released layout.

    Experts are stored one by one, the vision tower's query, key and value as one matrix.
    Identity layer scales and indices that the config states are left out, as NVIDIA does.
    Memory in use besides the model is one shard. An older save in the directory is replaced
    once all new files are complete.

    Args:
        model: Has a `config` and transformers' names; its weights are in memory.
        directory: Made if missing.
        max_shard_size: Bytes, or text such as `"5GB"`; a larger single tensor gets a file
            of its own.
        state_dict: Weights to write instead of the model's, by their names in memory.

    Raises:
        CheckpointError: Weights are on the meta device (offloaded), or the directory is a file.
        RequestError: `max_shard_size` is not a size.
    """
    directory = Path(directory)
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; give a directory to save to.")
    if is_quantized(model):
        raise CheckpointError(
            "The model is quantised, and what was rounded away cannot be saved. Copy the "
            "directory that `omni quantize` wrote, or save the float model."
        )
    limit = _as_bytes(max_shard_size)
    tensors = _saved_tensors(model, state_dict)
    offloaded = [name for name, tensor in tensors.items() if tensor.is_meta]
    if offloaded:
        raise CheckpointError(
            f"{len(offloaded)} weights are not in memory ({offloaded[0]}, ...), because they are "
            "offloaded or were never loaded. Load the model without offloading, then save."
        )
    layout = WeightsLayout.of(model.config)
    parts = layout.stored({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    shards = list(_split_into_shards(parts, tensors, limit))

    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {name: _join(parts[name], tensors) for name in names}
        _write_shard(shard, directory / f"{file}.partial")
        total_size += sum(tensor.nbytes for tensor in shard.values())
        weight_map.update(dict.fromkeys(names, file))
    _replace_files(directory, set(weight_map.values()))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    _write_config(model.config, main_dtype(tensors), directory)


def _saved_tensors(model: nn.Module, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Choose what is stored: each tensor once, without what a reader fills in by itself."""
    config: Any = model.config
    vision = config.vision_config
    identity = {
        "layer_scale1.lambda1": getattr(vision, "layerscale_value", 1.0),
        "layer_scale2.lambda1": getattr(vision, "layerscale_value", 1.0),
    }
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in (state_dict or model.state_dict()).items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape)
        if tensor.numel() and not tensor.is_meta and key in seen:
            continue
        seen.add(key)
        if name == "vision_model.summary_idxs":
            continue
        value = identity.get(".".join(name.split(".")[-2:]))
        if value is not None and not tensor.is_meta and bool((tensor == value).all()):
            continue
        tensors[name] = tensor.detach()
    return tensors


def _split_into_shards(
    parts: Mapping[str, list[tuple[str, Piece]]], tensors: Mapping[str, Tensor], limit: int
) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for stored, joined in parts.items():
        nbytes = sum(_part(part, tensors).nbytes for part in joined)
        if names and size + nbytes > limit:
            yield names
            names, size = [], 0
        names.append(stored)
        size += nbytes
    yield names


def _part(part: tuple[str, Piece], tensors: Mapping[str, Tensor]) -> Tensor:
    name, piece = part
    return tensors[name] if piece.row is None else tensors[name][piece.row]


def _join(joined: list[tuple[str, Piece]], tensors: Mapping[str, Tensor]) -> Tensor:
    whole = [_part(part, tensors).cpu() for part in joined]
    return torch.cat(whole).contiguous() if len(whole) > 1 else whole[0].contiguous()


def _write_shard(shard: dict[str, Tensor], file: Path) -> None:
    # safetensors makes files that only their owner can read; take the mode of ordinary ones.
    file.touch()
    mode = file.stat().st_mode
    save_file(shard, file, metadata={"format": "pt"})
    file.chmod(mode)


def _replace_files(directory: Path, files: set[str]) -> None:
    """Swap the finished files in, and remove the weights of an older save."""
    (directory / INDEX_NAME).unlink(missing_ok=True)
    for old in directory.iterdir():
        if WEIGHTS_FILE.fullmatch(old.name) and old.name not in files:
            old.unlink()
    for file in files:
        (directory / f"{file}.partial").replace(directory / file)


def _write_config(config: PreTrainedConfig, dtype: torch.dtype, directory: Path) -> None:
    written = copy.deepcopy(config)
    written.architectures = [PUBLISHED_ARCHITECTURE]
    for part in (written, *(getattr(written, name, None) for name in written.sub_configs)):
        if part is not None:
            part.dtype = dtype
    written.save_pretrained(directory)


def _as_bytes(size: int | str) -> int:
    try:
        number = convert_file_size_to_int(size)
    except ValueError as error:
        raise RequestError(
            f"max_shard_size is {size!r}; expected bytes or text such as '5GB'."
        ) from error
    if number <= 0:
        raise RequestError(f"max_shard_size is {size!r}; expected more than 0 bytes.")
    return number


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
