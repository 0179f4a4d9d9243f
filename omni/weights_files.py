"""The safetensors files of a directory: what is in them, and reading straight into memory.

Tensors are read with plain file reads into their final place. Mapping the files instead
would be shorter, but the mapped pages count against the process until the file is closed
(a second copy for one-file checkpoints) and a file that is replaced meanwhile kills it.

Quantised weights are mapped all the same (`MappedFiles`): they are used as they lie in the file,
so loading reads nothing, the kernel drops and re-reads pages where memory is short, and processes
on the same file share them.
"""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omni.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

# Bytes of a conversion buffer: large enough that disk reads are sequential, small beside
# any model.
BUFFER_BYTES = 32 * 1024**2
ALIGNMENT = 64
"""Bytes; mapped tensors start at multiples of it, as those that PyTorch allocates."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Names under which quantised exports store their scales beside the packed weights.
SCALES = re.compile(
    r"(weight_scale|weight_scale_2|weight_scale_inv|input_scale|[kv]_scale|weight_packed|absmax)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    file: Path
    offset: int
    """First byte in the file."""
    shape: tuple[int, ...]
    dtype_name: str
    """The format's spelling, such as `BF16`."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored numbers."""
        return DTYPES[self.dtype_name]

    @property
    def num_elements(self) -> int:
        """Numbers stored."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """List all tensors of a checkpoint directory from the headers of its files.

    Args:
        directory: Holds `model.safetensors`, or shards with `model.safetensors.index.json`.

    Returns:
        The tensors by stored name, in the order of files and offsets.

    Raises:
        CheckpointError: No safetensors, a missing shard, a damaged file, a name twice,
            quantised weights.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        for tensor in _read_header(file):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{directory}: tensor {tensor.name!r} is both in "
                    f"{tensors[tensor.name].file.name} and {file.name}. Expected each once; "
                    "remove the file that is left from another save."
                )
            tensors[tensor.name] = tensor
    packed = [t for t in tensors.values() if t.dtype_name not in DTYPES or SCALES.search(t.name)]
    if packed:
        raise quantised_error(directory, f"tensor {packed[0].name} ({packed[0].dtype_name})")
    return tensors


def quantised_error(directory: Path, found: str) -> CheckpointError:
    """Make the refusal of a quantised checkpoint, naming what gave it away."""
    return CheckpointError(
        f"{directory}: this checkpoint is quantised (found {found}); only float32, float16 and "
        "bfloat16 weights are read, and what `omni quantize` wrote. Use the BF16 release of the "
        "model."
    )


def weight_files(directory: Path) -> list[Path]:
    """Choose the safetensors files of a directory: by index, else the files themselves.

    Raises:
        CheckpointError: As `stored_tensors`.
    """
    index = directory / INDEX_NAME
    if index.is_file():
        names = sorted(set(_read_index(index).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory}: {len(missing)} of {len(names)} files named by {INDEX_NAME} are "
                f"missing ({', '.join(missing[:5])}). Complete the download or the copy."
            )
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if (single := directory / "model.safetensors") in files:
        return [single]
    if files:
        return files
    pickled = sorted(f.name for f in directory.iterdir() if f.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{directory}: found {', '.join(pickled[:5])} but no safetensors. Pickled weights "
            "can run code and are never read; where you trust them, convert them with "
            "torch.load(file, weights_only=True) and safetensors.torch.save_file."
        )
    raise CheckpointError(
        f"{directory}: found no weights; expected model.safetensors, or shards with {INDEX_NAME}."
    )


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map: Any = json.loads(index.read_text())["weight_map"]
        names = {str(key): str(value) for key, value in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: not a safetensors index ({error}); expected a JSON object with "
            "weight_map. Download or save the checkpoint again."
        ) from error
    for name in names.values():
        if Path(name).name != name:
            raise CheckpointError(
                f"{index}: names the file {name!r}; expected files beside the index only."
            )
    return names


def _read_header(file: Path) -> Iterator[StoredTensor]:
    try:
        # The library checks the header against the size of the file; it reads no weights.
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a complete safetensors file ({error}). Download or save it again."
        ) from error
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        yield StoredTensor(
            name=name,
            file=file,
            offset=8 + length + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
            dtype_name=entry["dtype"],
        )


def read_into(target: Tensor, stream: BinaryIO, stored: StoredTensor, first: int = 0) -> None:
    """Fill a tensor with consecutive numbers of a stored one.

    Args:
        target: Contiguous, of any dtype and device; its size says how much is read.
        stream: The open file of `stored`.
        stored: The tensor to read from.
        first: Position of the first number wanted in the flattened stored tensor.

    Raises:
        CheckpointError: The file ends too early.
    """
    itemsize = stored.dtype.itemsize
    stream.seek(stored.offset + first * itemsize)
    flat = target.view(-1)
    if target.device.type == "cpu" and target.dtype == stored.dtype:
        _fill_bytes(flat, stream, stored)
        return
    step = max(1, BUFFER_BYTES // itemsize)
    buffer = torch.empty(min(step, flat.numel()), dtype=stored.dtype)
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        loaded = buffer[: part.numel()]
        _fill_bytes(loaded, stream, stored)
        part.copy_(loaded)


class MappedFiles:
    """Tensors that are views of mapped files; a page is read when it is first used."""

    def __init__(self) -> None:
        self._storages: dict[Path, Any] = {}

    def tensor(self, stored: StoredTensor, *, writable: bool = False) -> Tensor:
        """Map one stored tensor.

        Args:
            stored: Where it lies; its offset must be a multiple of the size of its numbers. Where
                it is no multiple of `ALIGNMENT`, the tensor is a copy unless `writable`.
            writable: Whether writes reach the file; else they stay in this process.

        Raises:
            CheckpointError: The file is laid out differently.
        """
        itemsize = stored.dtype.itemsize
        if stored.offset % itemsize:
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name!r} starts at byte {stored.offset}, which is "
                f"no multiple of {itemsize}, so it cannot be mapped. Quantise the model again."
            )
        if stored.file not in self._storages:
            size = stored.file.stat().st_size
            self._storages[stored.file] = torch.UntypedStorage.from_file(
                str(stored.file), shared=writable, nbytes=size
            )
        whole = torch.empty(0, dtype=stored.dtype)
        flat = whole.set_(
            self._storages[stored.file], stored.offset // itemsize, (stored.num_elements,), (1,)
        )
        tensor = flat.view(stored.shape)
        # Kernels want aligned tensors; what a file has elsewhere is small, and is copied.
        is_aligned = tensor.data_ptr() % ALIGNMENT == 0
        return tensor if writable or is_aligned else tensor.clone()


def _fill_bytes(flat: Tensor, stream: BinaryIO, stored: StoredTensor) -> None:
    if flat.numel() == 0:
        return
    view = flat.view(torch.uint8).numpy().data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]  # BinaryIO lacks it
        if not count:
            raise CheckpointError(
                f"{stored.file}: ended inside tensor {stored.name!r}. The file changed while it "
                "was read; load again."
            )
        done += count
