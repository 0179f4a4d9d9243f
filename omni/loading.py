"""Filling a model that lies on the meta device, tensor by tensor, with nothing held twice."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni.errors import CheckpointError, RequestError
from omni.memory import final_dtype
from omni.placement import Placement, place
from omni.quantization.recipe import is_packed
from omni.weights_files import MappedFiles, StoredTensor, read_into, stored_tensors
from omni.weights_layout import FILLED, IGNORED, Piece, WeightsLayout

LISTED_NAMES = 5  # in one error message


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A tensor of the model and the stored pieces that make it up."""

    names: tuple[str, ...]
    """All names under which the model holds it; several when tied."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    """Empty for what released files never store."""
    is_mapped: bool = False
    """Whether it stays in its file: a quantised weight."""


def materialise(
    model: nn.Module,
    directory: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    offload_folder: str | Path | None = None,
) -> nn.Module:
    """Give a model on the meta device the weights of a checkpoint, in place.

    1. Plan: match every parameter and persistent buffer with stored pieces, by name and
       shape, before any weight is read.
    2. Place: decide the device of each tensor.
    3. Read file by file. A tensor is allocated when its first piece arrives and installed
       when its last one has. Quantised weights are mapped instead.
    4. Fill what released files never store, rebuild computed buffers, and let accelerate
       dispatch, if asked.

    Memory at any time is at most the weights that have arrived, plus one read buffer.

    Args:
        model: Has a `config` and transformers' names; see `omni.weights_layout`.
        directory: Checkpoint directory.
        dtype: Of floating-point weights, such as `torch.bfloat16` or `"bfloat16"`; None or
            `"auto"` keeps them as stored. Router correction biases are float32 always.
        device: One device for everything; None means the CPU.
        device_map: accelerate's placement (`"auto"`, `"balanced"`, `"sequential"`, or module
            name -> device), instead of `device`.
        offload_folder: Where weights placed on `"disk"` go.

    Returns:
        The same model.

    Raises:
        CheckpointError: Missing, unexpected or mis-shaped tensors, unreadable files.
        NotEnoughMemoryError: A `device_map` needs the disk but there is no `offload_folder`.
        RequestError: `dtype` is no dtype, or `device` and `device_map` are both given.
    """
    directory = Path(directory)
    wanted = as_dtype(dtype)
    stored = stored_tensors(directory)
    plan = plan_tensors(model, directory, stored, wanted)
    placement = place(
        model,
        {name: d.dtype for d in plan for name in d.names},
        device=device,
        device_map=device_map,
        offload_folder=offload_folder,
    )
    _read_all(model, plan, stored, placement)
    for destination in plan:
        if not destination.pieces:
            _install(model, destination, _filled(model, destination, placement), placement)
    _rebuild_computed_buffers(model, placement)
    placement.finish(model)
    _note_dtype(model.config, main_dtype(model.state_dict()))
    return model


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Read a dtype argument: a torch dtype, its name, None or `"auto"` (as stored).

    Raises:
        RequestError: It names no floating-point dtype.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RequestError(
            f"dtype is {dtype!r}; expected 'float32', 'bfloat16', 'float16' or 'auto'."
        )
    return found


def as_device(device: torch.device | str | None) -> torch.device:
    """Read a device argument; None is the CPU.

    Raises:
        RequestError: It is no device, or none of this machine.
    """
    try:
        found = torch.device(device or "cpu")
        torch.empty(0, device=found)
    # No such name or no driver; a build without the backend; a backend without kernels; no text.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise RequestError(
            f"device is {str(device)!r}, which cannot be used here ({str(error).splitlines()[0]}); "
            f"this machine has {', '.join(here)}."
        ) from error
    return found


def main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Tell the floating-point dtype that most numbers of some tensors have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


# -------------------------------------------------------------------------------------- plan


def plan_tensors(
    model: nn.Module,
    directory: Path,
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype | None = None,
) -> list[Destination]:
    """Match every tensor of a model with stored pieces; arguments are those of `materialise`.

    Raises:
        CheckpointError: Missing, unexpected or mis-shaped tensors.
    """
    layout = WeightsLayout.of(model.config)
    tensors = model.state_dict(keep_vars=True)
    plan: list[Destination] = []
    missing: list[str] = []
    misshaped: list[str] = []
    known: set[str] = set()
    for names in _tied_names(model, tensors):
        tensor = tensors[names[0]]
        shape = tuple(tensor.shape)
        pieces = _find_pieces(layout, names, shape, stored)
        known.update(piece.stored for piece in pieces)
        # The other names of a tied tensor may be stored as well; its first name counts.
        known.update(layout.rename(name) for name in names)
        if not pieces and not FILLED.search(names[0]):
            expected = [piece.stored for piece in layout.pieces(names[0], shape)]
            missing += [name for name in expected if name not in stored]
            known.update(expected)
            continue
        for piece in pieces:
            found, expected_shape = stored[piece.stored].shape, _stored_shape(piece, shape)
            if found != expected_shape:
                misshaped.append(f"{piece.stored} (found {found}, expected {expected_shape})")
        as_stored = stored[pieces[0].stored].dtype if pieces else tensor.dtype
        if not tensor.is_floating_point():
            as_stored = tensor.dtype
        plan.append(
            Destination(
                names=names,
                shape=shape,
                dtype=final_dtype(names[0], as_stored, dtype),
                pieces=pieces,
                is_mapped=is_packed(model, names[0]),
            )
        )
    unexpected = [name for name in stored if name not in known and not IGNORED.search(name)]
    _refuse_mismatch(directory, missing, unexpected, misshaped)
    return plan


def _tied_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Group the names that share one tensor: the same object, or tied by declaration."""
    sources: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        source = sources.get(name, name)
        groups.setdefault(id(tensors.get(source, tensor)), []).append(name)
    return [tuple(names) for names in groups.values()]


def _find_pieces(
    layout: WeightsLayout,
    names: Iterable[str],
    shape: tuple[int, ...],
    stored: Mapping[str, StoredTensor],
) -> tuple[Piece, ...]:
    """Look a tensor up under its released name, or else under its name in memory."""
    for name in names:
        for pieces in (layout.pieces(name, shape), (Piece(stored=name),)):
            if all(piece.stored in stored for piece in pieces):
                return pieces
    return ()


def _stored_shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    if piece.row is not None:
        return shape[1:]
    if piece.third is not None:
        return (3 * shape[0], *shape[1:])
    return shape


def _refuse_mismatch(
    directory: Path, missing: list[str], unexpected: list[str], misshaped: list[str]
) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    found = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED_NAMES])}"
        + (", ..." if len(names) > LISTED_NAMES else "")
        for kind, names in kinds.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"{directory}: the tensors do not match config.json; {'; '.join(found)}. Expected "
            "the released layout for exactly this config; check that both belong together and "
            "that the download is complete."
        )


# -------------------------------------------------------------------------------------- read


def _read_all(
    model: nn.Module,
    plan: Iterable[Destination],
    stored: Mapping[str, StoredTensor],
    placement: Placement,
) -> None:
    uses: dict[str, list[tuple[Destination, Piece]]] = {}
    for destination in plan:
        for piece in destination.pieces:
            uses.setdefault(piece.stored, []).append((destination, piece))
    by_file: dict[Path, list[StoredTensor]] = {}
    for name, tensor in stored.items():
        if name in uses:
            by_file.setdefault(tensor.file, []).append(tensor)

    mapped = MappedFiles()
    arriving: dict[str, Tensor] = {}
    pieces_left: dict[str, int] = {}
    for file, in_file in by_file.items():
        with file.open("rb") as stream:
            for source in in_file:
                for destination, piece in uses[source.name]:
                    key = destination.names[0]
                    if destination.is_mapped:
                        _refuse_device(key, placement)
                        _install(model, destination, mapped.tensor(source), placement)
                        continue
                    if key not in arriving:
                        arriving[key] = placement.allocate(
                            key, destination.shape, destination.dtype
                        )
                        pieces_left[key] = len(destination.pieces)
                    whole = arriving[key]
                    target = whole if piece.row is None else whole[piece.row]
                    read_into(target, stream, source, first=(piece.third or 0) * target.numel())
                    pieces_left[key] -= 1
                    if pieces_left[key] == 0:
                        _install(model, destination, arriving.pop(key), placement)


def _refuse_device(name: str, placement: Placement) -> None:
    """Quantised layers compute with kernels of the CPU."""
    device = placement.device_of(name)
    if device.type != "cpu":
        raise RequestError(
            f"{name} is quantised, which runs on the CPU only, but should go to {device}. Load it "
            "with device='cpu', or the float checkpoint there."
        )


def _install(
    model: nn.Module, destination: Destination, tensor: Tensor, placement: Placement
) -> None:
    """Put a finished tensor into the model under all its names."""
    shared: nn.Parameter | None = None
    for name in destination.names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        if isinstance(old, nn.Parameter):
            if shared is None:
                settled = placement.settle(destination.names[0], tensor)
                shared = nn.Parameter(settled, requires_grad=old.requires_grad)
            # transformers initialises whatever does not carry this mark.
            shared._is_hf_initialized = True  # type: ignore[attr-defined]
            setattr(module, leaf, shared)
        else:
            # accelerate keeps buffers in memory even where parameters go to disk.
            setattr(module, leaf, tensor)


# -------------------------------------------------------------------------------------- fill


def _filled(model: nn.Module, destination: Destination, placement: Placement) -> Tensor:
    """Make a tensor that released files leave out: identity scales, indices of the config."""
    name = destination.names[0]
    config: Any = model.config
    vision = config.vision_config
    if name.endswith("summary_idxs"):
        return torch.tensor(vision.summary_idxs, device=placement.device_of(name))
    value = 0.0 if name.endswith(".bias") else 1.0
    if ".layer_scale" in name:
        value = getattr(vision, "layerscale_value", 1.0)
    # The dtype of its tower: a lone float32 scale would turn the activations to float32.
    tower = name.split(".")[0]
    beside = [
        tensor.dtype
        for key, tensor in model.state_dict().items()
        if key.startswith(tower) and tensor.is_floating_point() and not FILLED.search(key)
    ]
    dtype = beside[0] if beside else destination.dtype
    return placement.allocate(name, destination.shape, dtype).fill_(value)


def _rebuild_computed_buffers(model: nn.Module, placement: Placement) -> None:
    """Give buffers that no checkpoint stores (inverse frequencies) their values and device.

    On the meta device they have none; the owning transformers model knows how to compute
    them, and leaves alone what is marked as initialised.
    """
    persistent = set(model.state_dict())
    models = {name: m for name, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    for module_name, module in model.named_modules():
        computed = {
            leaf: buffer
            for leaf, buffer in module.named_buffers(recurse=False)
            if f"{module_name}.{leaf}".lstrip(".") not in persistent
        }
        empty = {leaf: buffer for leaf, buffer in computed.items() if buffer.is_meta}
        for leaf, buffer in empty.items():
            value = torch.zeros_like(buffer, device="cpu")
            setattr(module, leaf, value.fill_(torch.nan) if value.is_floating_point() else value)
        if empty:
            owner = max((n for n in models if _is_inside(module_name, n)), key=len, default=None)
            if owner is not None:
                models[owner]._init_weights(module)
            unknown = [leaf for leaf in empty if getattr(module, leaf).isnan().any()]
            if unknown:
                raise CheckpointError(
                    f"{module_name}.{unknown[0]} is computed when the model is built, and the "
                    "meta device lost it. Build the model under "
                    "accelerate.init_empty_weights(include_buffers=False) instead."
                )
        for leaf in computed:
            where = placement.device_of(f"{module_name}.{leaf}")
            setattr(module, leaf, getattr(module, leaf).to(where))


def _is_inside(name: str, ancestor: str) -> bool:
    return ancestor == "" or name == ancestor or name.startswith(f"{ancestor}.")


def _note_dtype(config: Any, dtype: torch.dtype) -> None:
    """Write the dtype into the config and its parts, where transformers looks it up."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype
