"""`omni quantize`: a float checkpoint becomes an int8 or int4 one, source file by source file.

    DIR.partial/                 while it is made; renamed to DIR at the end
      model-0000i-of-0000n.safetensors   whole from the start, filled in place
      progress.json                      which source files are done

Every size is known from the headers of the source, so all files are laid out first. Then each
source tensor is read, quantised in stretches of rows, and written to where it belongs. Memory is a
few stretches, whatever the size of the model; experts which released files store one by one end
up stacked, as the model wants them. A run that was stopped goes on with the next source file.

Tensors are stored under their names in memory, those of quantised layers as `weight`, `row_scale`
and `group_scale`, each starting where it can be mapped (`omni.weights_files.MappedFiles`).
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from omni.checkpoint import DOWNLOADED, read_config
from omni.errors import CheckpointError, RequestError
from omni.loading import plan_tensors
from omni.memory import gib
from omni.model import OmniModel
from omni.quantization.formats import BLOCK
from omni.quantization.modules import QuantizedExperts, QuantizedLinear, WeightFormat
from omni.quantization.recipe import QuantizationConfig, StoredEmbedding, quantize_modules
from omni.weights_files import (
    ALIGNMENT,
    DTYPES,
    INDEX_NAME,
    MappedFiles,
    StoredTensor,
    read_into,
    stored_tensors,
)
from omni.weights_layout import Piece

PROGRESS = "progress.json"
MAX_FILE_BYTES = 5 * 10**9
STRETCH_VALUES = 2**24
"""Weights that are quantised at a time: 64 MiB in float32, a few times that while it is done."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one source piece goes."""

    piece: Piece
    name: str
    """Name of the tensor in the output, or of the quantised weight that owns its tensors."""
    form: WeightFormat | None
    """How it is quantised; None copies it."""
    shape: tuple[int, ...]
    """Shape of the piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a conversion did."""

    source_bytes: int
    bytes: int
    """Size of the new weights."""
    files: int
    quantized: int
    """Weights (numbers) in int8 or int4."""
    kept: int
    """Weights in 16 or 32 bits."""


def quantize_checkpoint(
    source: str | Path,
    out: str | Path,
    choices: QuantizationConfig,
    *,
    before_file: Callable[[Path], None] = lambda file: None,
    after_file: Callable[[Path, int, int], None] = lambda file, done, total: None,
) -> Summary:
    """Convert a checkpoint.

    Args:
        source: Directory in the released layout, or as our or transformers' saves write it.
        out: New directory.
        choices: What to quantise.
        before_file: Called with each source file before it is read.
        after_file: Called with each source file when all of it is written, how many are done,
            and how many there are. The file is not read again.

    Raises:
        CheckpointError: The source is quantised, incomplete or does not match its config.
        RequestError: `out` exists, its disk is too small, or holds another started conversion.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise RequestError(f"{out} exists already; give a new directory, or remove it.")
    config = read_config(source)
    if QuantizationConfig.of(config):
        raise CheckpointError(
            f"{source} is quantised already; rounding twice loses more. Give the float checkpoint "
            "it was made from."
        )
    stored = stored_tensors(source)
    with torch.device("meta"):
        model = OmniModel(config)
    destinations = plan_tensors(model, source, stored)
    quantize_modules(model, choices)
    targets: dict[str, list[Target]] = {}
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for destination in destinations:
        if destination.pieces:
            name, form = _in_quantized(model, destination.names[0])
            tensors.update(_outputs(name, form, destination.shape, destination.dtype))
            for piece in destination.pieces:
                shape = destination.shape if piece.row is None else destination.shape[1:]
                target = Target(piece=piece, name=name, form=form, shape=shape)
                targets.setdefault(piece.stored, []).append(target)

    partial = out.with_name(f"{out.name}.partial")
    files = sorted({tensor.file for tensor in stored.values()})
    start = _start(source, choices, files)
    done = _continue(partial, start) if partial.exists() else None
    if done is None:
        _check_disk(partial.parent, tensors)
        _lay_out(partial, tensors)
        done = []
        _write_progress(partial, start, done)
    for file in files:
        if file.name in done:
            continue
        before_file(file)
        _convert_file(file, stored, targets, partial)
        done.append(file.name)
        _write_progress(partial, start, done)
        after_file(file, len(done), len(files))
    _finish(source, partial, out, choices)
    weights = [math.prod(d.shape) for d in destinations if d.pieces]
    forms = [_in_quantized(model, d.names[0])[1] for d in destinations if d.pieces]
    quantized = sum(n for n, form in zip(weights, forms, strict=True) if form)
    return Summary(
        source_bytes=sum(t.num_elements * t.dtype.itemsize for t in stored.values()),
        bytes=sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values()),
        files=len(list(out.glob("*.safetensors"))),
        quantized=quantized,
        kept=sum(weights) - quantized,
    )


# --------------------------------------------------------------------------------------- plan


def _in_quantized(model: nn.Module, name: str) -> tuple[str, WeightFormat | None]:
    """Name in the quantised model of a tensor of the float one, and its format there."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, QuantizedLinear) and leaf == "weight":
        return path, owner.form
    if isinstance(owner, QuantizedExperts):
        return name, getattr(owner, leaf).form
    if isinstance(owner, StoredEmbedding):
        return f"{path}.table", None
    return name, None


def _outputs(
    name: str, form: WeightFormat | None, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The tensors that are stored for one of the float model."""
    if form is None:
        return {name: (shape, dtype)}
    return {f"{name}.{leaf}": found for leaf, found in form.tensors(*shape).items()}


def _check_disk(folder: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RequestError(
            f"The quantised model takes {gib(needed)} but {gib(free)} is free in {folder}. Free "
            "some disk, or give an output directory on another one."
        )


def _lay_out(partial: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Make all files with their headers and their full size, and the index."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    groups: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in tensors.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if groups[-1] and size + nbytes > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_header(partial / file, {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (partial / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_header(file: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Write a safetensors file without its data.

    The format allows no gaps, so whole multiples of `ALIGNMENT` come first, then wide numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0

    def place(name: str) -> tuple[bool, int]:
        shape, dtype = tensors[name]
        return math.prod(shape) * dtype.itemsize % ALIGNMENT != 0, -dtype.itemsize

    for name in sorted(tensors, key=place):
        shape, dtype = tensors[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)


# ------------------------------------------------------------------------------------ convert


@torch.no_grad()
def _convert_file(
    file: Path,
    stored: Mapping[str, StoredTensor],
    targets: Mapping[str, list[Target]],
    partial: Path,
) -> None:
    """Quantise or copy all tensors of one source file into place."""
    written = stored_tensors(partial)
    mapped = MappedFiles()

    def open_tensor(name: str, row: int | None) -> Tensor:
        whole = mapped.tensor(written[name], writable=True)
        return whole if row is None else whole[row]

    with file.open("rb") as stream:
        for source in (tensor for tensor in stored.values() if tensor.file == file):
            for target in targets.get(source.name, ()):
                row = target.piece.row
                if target.form is None:
                    place = open_tensor(target.name, row)
                    first = (target.piece.third or 0) * place.numel()
                    read_into(place, stream, source, first=first)
                    continue
                places = {
                    leaf: open_tensor(f"{target.name}.{leaf}", row)
                    for leaf in target.form.tensors(*target.shape)
                }
                for rows, weight in _stretches(stream, source, target):
                    for leaf, value in target.form.quantize(weight).items():
                        target.form.rows(leaf, places[leaf], rows).copy_(value)
    touched = {written_tensor.file for written_tensor in written.values()}
    del mapped
    for path in touched:
        with path.open("rb") as opened:
            os.fsync(opened.fileno())


def _stretches(
    stream: BinaryIO, source: StoredTensor, target: Target
) -> Iterator[tuple[slice, Tensor]]:
    """Read a matrix in stretches of whole blocks of rows, in float32."""
    num_rows, num_columns = target.shape
    step = max(STRETCH_VALUES // num_columns // BLOCK, 1) * BLOCK
    begin = (target.piece.third or 0) * num_rows
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        weight = torch.empty(stop - start, num_columns)
        read_into(weight, stream, source, first=(begin + start) * num_columns)
        yield slice(start, stop), weight


# ----------------------------------------------------------------------------- start and finish


def _start(source: Path, choices: QuantizationConfig, files: list[Path]) -> dict[str, Any]:
    """What must be the same when a stopped conversion goes on."""
    return {
        "source": str(source.resolve()),
        "choices": choices.to_dict(),
        "files": {file.name: file.stat().st_size for file in files},
    }


def _continue(partial: Path, start: dict[str, Any]) -> list[str] | None:
    """Names of the source files that are done; None if nothing was begun."""
    progress = partial / PROGRESS
    if not progress.is_file():
        return None
    found = json.loads(progress.read_text())
    if found["start"] != start:
        raise RequestError(
            f"{partial} holds a conversion of another source, or with other options, that was "
            f"stopped. Go on with it by {found['start']['choices']} of "
            f"{found['start']['source']}, or remove it."
        )
    return list(found["done"])


def _write_progress(partial: Path, start: dict[str, Any], done: list[str]) -> None:
    new = partial / f"{PROGRESS}.new"
    new.write_text(json.dumps({"start": start, "done": done}))
    new.replace(partial / PROGRESS)


def _finish(source: Path, partial: Path, out: Path, choices: QuantizationConfig) -> None:
    """Copy what is not weights, write the config, and give the directory its name."""
    for pattern in DOWNLOADED:
        for file in source.glob(pattern):
            if file.suffix != ".safetensors" and file.name not in (INDEX_NAME, "config.json"):
                shutil.copyfile(file, partial / file.name)
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    fields["quantization_config"] = choices.to_dict()
    (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    (partial / PROGRESS).unlink()
    partial.rename(out)
