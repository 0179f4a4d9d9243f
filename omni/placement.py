"""On which device each weight goes: one device, or accelerate's map over several and disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import (
    get_balanced_memory,
    get_max_memory,
    offload_weight,
    save_offload_index,
)
from torch import Tensor, nn

from omni.errors import CheckpointError, NotEnoughMemoryError, RequestError
from omni.memory import HEADROOM_BYTES, free_bytes, gib

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
DISK = "disk"


class Placement:
    """Allocates weights where they belong, sends them to disk, and dispatches the model.

    Args:
        devices: Device by module or tensor name; the longest matching name counts, and `""`
            matches all. `"disk"` is allowed.
        offload_folder: Where weights on `"disk"` go.
    """

    def __init__(self, devices: Mapping[str, Any], offload_folder: Path | None = None) -> None:
        self.devices = dict(devices)
        self.offload_folder = offload_folder
        self._offloaded: dict[str, dict[str, Any]] = {}

    def device_of(self, name: str) -> torch.device:
        """Tell where a tensor is held; those on disk pass through the CPU."""
        device = self._entry(name)
        if device == DISK:
            return torch.device("cpu")
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Reserve memory for a tensor on its device."""
        return torch.empty(shape, dtype=dtype, device=self.device_of(name))

    def settle(self, name: str, tensor: Tensor) -> Tensor:
        """Take a complete tensor: as it is, or written to disk and replaced by a meta one."""
        if self._entry(name) != DISK:
            return tensor
        assert self.offload_folder is not None  # `place` has refused this
        offload_weight(tensor, name, str(self.offload_folder), self._offloaded)
        return tensor.to("meta")

    def finish(self, model: nn.Module) -> None:
        """Attach accelerate's hooks when the model is spread over more than one device."""
        if set(self.devices) == {""} and self.devices[""] != DISK:
            return
        if self._offloaded:
            save_offload_index(self._offloaded, str(self.offload_folder))
        dispatch_model(
            model,
            self.devices,
            offload_dir=self.offload_folder,
            skip_keys=getattr(model, "_skip_keys_device_placement", None),
        )

    def _entry(self, name: str) -> Any:
        while name not in self.devices:
            if not name:
                raise CheckpointError("device_map leaves out a module; expected all to be named.")
            name = name.rpartition(".")[0]
        return self.devices[name]


def place(
    model: nn.Module,
    dtypes: Mapping[str, torch.dtype],
    *,
    device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    offload_folder: str | Path | None = None,
) -> Placement:
    """Decide the placement of a model on the meta device.

    Args:
        model: The model.
        dtypes: Dtype that each weight will have, by name in memory.
        device: One device for everything; None means the CPU.
        device_map: One of `auto`, `balanced`, `balanced_low_0`, `sequential`, a device, or a
            device by module name.
        offload_folder: Made if missing, for weights that go to `"disk"`.

    Raises:
        RequestError: `device` and `device_map` are both given, or a module is left out.
        NotEnoughMemoryError: Part must go to disk and there is no `offload_folder`.
    """
    if device is not None and device_map is not None:
        raise RequestError(
            f"device={device!r} and device_map={device_map!r} both place the model; give one."
        )
    devices: dict[str, Any]
    if device_map is None:
        devices = {"": device or "cpu"}
    elif isinstance(device_map, Mapping):
        devices = _without_overlap(model, device_map)
    elif device_map in AUTOMATIC:
        devices = _infer(model, dtypes, device_map)
    else:
        devices = {"": device_map}
    left_out = [name for name in dtypes if not _is_covered(name, devices)]
    if left_out:
        raise RequestError(
            f"device_map names no device for {len(left_out)} weights ({left_out[0]}, ...). Name "
            "their modules, or '' for all others."
        )
    folder = None if offload_folder is None else Path(offload_folder)
    if DISK in devices.values() and folder is None:
        on_disk = sum(1 for device in devices.values() if device == DISK)
        raise NotEnoughMemoryError(
            f"The model needs {gib(_bytes(model, dtypes))} but {_free_summary()} is free, so "
            f"device_map={device_map!r} puts {on_disk} modules on disk. Give offload_folder=..., "
            "dtype='bfloat16', or a smaller model."
        )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return Placement(devices, folder)


def _without_overlap(model: nn.Module, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """Split entries that contain other entries: accelerate wants each module in one entry."""
    devices: dict[str, Any] = {}

    def walk(name: str, module: nn.Module, device: Any) -> None:
        device = device_map.get(name, device)
        inside = f"{name}." if name else ""
        if not any(key.startswith(inside) and key != name for key in device_map):
            if device is not None:
                devices[name] = device
            return
        for leaf, child in module.named_children():
            walk(inside + leaf, child, device)
        for leaf, _ in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if (own := device_map.get(inside + leaf, device)) is not None:
                devices[inside + leaf] = own

    walk("", model, None)
    return devices


def _infer(model: nn.Module, dtypes: Mapping[str, torch.dtype], strategy: str) -> dict[str, Any]:
    limits = get_max_memory()
    # accelerate asks the machine; in a container the control group may allow less.
    limits["cpu"] = max(0, min(limits["cpu"], free_bytes("cpu") - HEADROOM_BYTES))
    unsplit = list(getattr(model, "_no_split_modules", None) or [])
    if strategy != "sequential":
        limits = get_balanced_memory(
            model,
            max_memory=limits,
            no_split_module_classes=unsplit,
            special_dtypes=dict(dtypes),
            low_zero=strategy == "balanced_low_0",
        )
    return dict(
        infer_auto_device_map(
            model,
            max_memory=limits,
            no_split_module_classes=unsplit,
            special_dtypes=dict(dtypes),
        )
    )


def _is_covered(name: str, devices: Mapping[str, Any]) -> bool:
    while name and name not in devices:
        name = name.rpartition(".")[0]
    return name in devices


def _bytes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> int:
    return sum(
        tensor.numel() * dtypes.get(name, tensor.dtype).itemsize
        for name, tensor in model.state_dict(keep_vars=True).items()
    )


def _free_summary() -> str:
    gpus = sum(free_bytes(index) for index in range(torch.cuda.device_count()))
    cpu = gib(free_bytes("cpu"))
    return f"{gib(gpus)} on CUDA and {cpu} on the CPU" if gpus else f"{cpu} on the CPU"
