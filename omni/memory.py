"""Memory that a model needs and memory that is free, compared before anything is loaded.

A machine that swaps is worse than a refusal: `check_memory` raises with both numbers and
the ways out. Free memory of the CPU is what the kernel can give without swapping, and never
more than what is left in the control group (container) of this process.
"""

import ctypes
import re
import sys
from pathlib import Path

import psutil
import torch
from torch import nn

from omni.errors import NotEnoughMemoryError
from omni.weights_files import stored_tensors
from omni.weights_layout import IGNORED, KEPT_AS_STORED, KEPT_FLOAT32

GIB = 1024**3
# Room for the Python heap, the read buffer and the activations of a short prompt.
HEADROOM_BYTES = 256 * 1024**2
# Positions of one prefill pass. It bounds activations, so that an hour of audio needs little more
# memory than a minute.
PREFILL_CHUNK = 512
CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")


def required_bytes(source: Path | str | nn.Module, dtype: torch.dtype | None = None) -> int:
    """Count the bytes that the weights of a model will take.

    Args:
        source: A checkpoint directory, of which only the headers are read, or a model, which
            on the meta device takes nothing itself.
        dtype: Dtype that floating-point weights will have; None leaves each as it is.

    Returns:
        Bytes of all parameters and persistent buffers, shared ones counted once.

    Raises:
        CheckpointError: The directory holds no readable safetensors.
    """
    if isinstance(source, nn.Module):
        return sum(
            tensor.numel() * final_dtype(name, tensor.dtype, dtype).itemsize
            for name, tensor in unique_tensors(source).items()
        )
    return sum(
        stored.num_elements * final_dtype(stored.name, stored.dtype, dtype).itemsize
        for stored in stored_tensors(Path(source)).values()
        if not IGNORED.search(stored.name)
    )


def final_dtype(name: str, stored: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """Decide the dtype of a loaded tensor.

    Router correction biases are float32, integers and what belongs to quantised weights keep
    their dtype, other floats take `dtype`; where that is None they stay as stored.
    """
    if KEPT_FLOAT32.search(name):
        return torch.float32
    if KEPT_AS_STORED.search(name):
        return stored
    return dtype if dtype is not None and stored.is_floating_point else stored


def unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect parameters and persistent buffers by name, tied ones under their first name."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def free_bytes(device: torch.device | str | int = "cpu") -> int:
    """Measure the memory that is free on a device, in bytes.

    Args:
        device: `cpu`, or an accelerator such as `cuda:0`; a number means `cuda`.

    Returns:
        For the CPU the available memory without swapping, within the limits of the control
        group; for CUDA the free memory of the driver plus what torch holds unused.
    """
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    available = psutil.virtual_memory().available
    in_group = cgroup_free_bytes()
    return available if in_group is None else min(available, in_group)


def cgroup_free_bytes(
    root: Path = CGROUP_ROOT, process_cgroups: Path = PROCESS_CGROUPS
) -> int | None:
    """Measure what the tightest memory limit on this process leaves, in bytes.

    Reads version 2 and version 1 of the kernel's control groups, from the group of this
    process up to the root, since any ancestor may carry the limit.

    Args:
        root: Where the control groups are mounted.
        process_cgroups: The file that names the groups of this process.

    Returns:
        The least that is left, page cache counted as free; None without any limit.
    """
    if not process_cgroups.exists():
        return None
    left: list[int] = []
    for line in process_cgroups.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            base = root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        inside = Path(group.lstrip("/"))
        # In a container the path is often that of the host while the mount shows only the
        # own group, so the mount point itself is looked at as well.
        folders = [base / inside, *(base / parent for parent in inside.parents)]
        left.extend(free for folder in folders if (free := _group_free(folder, *names)) is not None)
    return min(left) if left else None


def _group_free(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    limit, usage = _read_number(folder / limit_name), _read_number(folder / usage_name)
    # Version 1 writes "no limit" as a number near 2**63.
    if limit is None or usage is None or limit >= 2**60:
        return None
    stat = folder / "memory.stat"
    cache = re.search(rf"^{cache_name} (\d+)$", stat.read_text(), re.M) if stat.exists() else None
    return max(0, limit - usage + (int(cache[1]) if cache else 0))


def _read_number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None


def check_memory(
    source: Path | str | nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int = "cpu",
    free: int | None = None,
) -> None:
    """Refuse to load what does not fit.

    Args:
        source: What would be loaded, as in `required_bytes`.
        dtype: Dtype of the loaded weights; None leaves them as stored.
        device: Where they would go.
        free: Free bytes; measured when None.

    Raises:
        NotEnoughMemoryError: The weights plus a headroom of 256 MiB exceed what is free.
        CheckpointError: As `required_bytes`.
    """
    required = required_bytes(source, dtype)
    free = free_bytes(device) if free is None else free
    if required + HEADROOM_BYTES <= free:
        return
    in_dtype = f" in {str(dtype).removeprefix('torch.')}" if dtype is not None else ""
    ways = []
    in_bfloat16 = required_bytes(source, torch.bfloat16)
    if in_bfloat16 < required:
        ways.append(f"dtype='bfloat16' ({gib(in_bfloat16)})")
    ways += [
        "device_map='auto' with offload_folder=..., which keeps part of it on disk",
        "a smaller model",
        "a quantised one (omni quantize)",
    ]
    raise NotEnoughMemoryError(
        f"The model needs {gib(required)}{in_dtype} but {gib(free)} is free on {device} "
        f"({gib(HEADROOM_BYTES)} of it is kept for work). Ways out: {'; '.join(ways)}."
    )


def release_heap() -> None:
    """Give memory that was freed back to the system, where the C library can be asked to.

    glibc keeps freed blocks that lie below one in use. After many small results between large
    activations, as encoding makes them, that is as much as the results themselves.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def gib(num_bytes: int) -> str:
    """Write a number of bytes as GiB with two digits, as in `61.47 GiB`."""
    return f"{num_bytes / GIB:.2f} GiB"
