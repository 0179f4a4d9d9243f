"""What this machine has, as far as the toolkit can use it."""

import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from omni.assistant import EMBEDDED_MODEL, EMBEDDED_PATH
from omni.backbone.kernels import self_test
from omni.backbone.native.library import Library, UnavailableError
from omni.checkpoint import read_config, resolve_checkpoint
from omni.memory import gib
from omni.quantization.formats import BLOCK, kernel_block
from omni.quantization.recipe import QuantizationConfig
from omni.weights_files import stored_tensors

PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "timm",
    "accelerate",
    "peft",
    "gradio",
    "av",
    "decord",
    "soundfile",
    "soxr",
    "pypdfium2",
    "ray",
)

# Decoder package -> what it reads. A package counts as working when it can be imported, not when
# it is merely installed: native libraries may be missing.
DECODERS = {
    "av": "video, sound tracks, M4A, WebM",
    "decord": "video, optional second reader",
    "soundfile": "WAV, FLAC, OGG, MP3",
    "pypdfium2": "PDF",
    "PIL": "images",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        group: ``versions``, ``compute``, ``kernels``, ``decoders``, ``memory`` or ``model``.
        name: What was looked at.
        ok: False if something that users would miss does not work.
        detail: What was found.
    """

    group: str
    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def examine(model: str | None = None) -> list[Finding]:
    """Look at versions, devices, kernels, decoders and free memory.

    Args:
        model: Also say how the weights of this checkpoint directory or hub id are stored.

    Returns:
        Findings in report order. Nothing is changed.
    """
    found = [*_versions(), *_compute(), *_kernels(), *_decoders(), *_memory()]
    return found if model is None else [*found, _model(model)]


def _versions() -> list[Finding]:
    findings = [
        Finding(group="versions", name="python", ok=True, detail=platform.python_version()),
    ]
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            optional = package in ("ray", "decord")
            detail = "not installed (optional)" if optional else "not installed"
            findings.append(Finding(group="versions", name=package, ok=optional, detail=detail))
        else:
            findings.append(Finding(group="versions", name=package, ok=True, detail=found))
    return findings


def _compute() -> list[Finding]:
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
    findings = [Finding(group="compute", name="cpu", ok=True, detail=threads)]
    if not torch.cuda.is_available():
        absent = Finding(group="compute", name="cuda", ok=True, detail="none; the CPU is used")
        return [*findings, absent]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        detail = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        findings.append(Finding(group="compute", name=f"cuda:{index}", ok=True, detail=detail))
    return findings


def _kernels() -> list[Finding]:
    report = self_test()
    # Never needed, so an unused kernel is no fault: the detail says why it is not used.
    return [
        Finding(
            group="kernels",
            name=status.package,
            ok=True,
            detail=f"{'used' if status.usable else 'not used'}: {status.detail}",
        )
        for status in (report.scan, report.conv)
    ] + [_quantized_kernels(), _native_steps()]


def _native_steps() -> Finding:
    """Whether decoding on the CPU can be compiled; never needed, as above."""
    try:
        Library.get()
    except UnavailableError as reason:
        return Finding(group="kernels", name="native steps", ok=True, detail=f"not used: {reason}")
    return Finding(group="kernels", name="native steps", ok=True, detail="used on the CPU")


def _quantized_kernels() -> Finding:
    """Whether PyTorch's int8 and int4 products work here."""
    try:
        block = kernel_block()
        torch._int_mm(torch.ones(1, 64, dtype=torch.int8), torch.ones(64, 64, dtype=torch.int8))
    except RuntimeError as error:
        return Finding(group="kernels", name="int8, int4", ok=False, detail=str(error))
    detail = f"used on the CPU ({torch.backends.cpu.get_cpu_capability()})"
    if block != BLOCK:
        detail += "; int4 weights are re-packed in each call, which is slow: use int8"
    return Finding(group="kernels", name="int8, int4", ok=True, detail=detail)


def _model(name: str) -> Finding:
    """How the weights of a checkpoint are stored."""
    directory = EMBEDDED_PATH if name == EMBEDDED_MODEL else resolve_checkpoint(name)
    choices = QuantizationConfig.of(read_config(directory))
    size = gib(sum(t.num_elements * t.dtype.itemsize for t in stored_tensors(directory).values()))
    how = "not quantised"
    if choices is not None:
        towers = "int8" if choices.towers else "not quantised"
        groups = f" in groups of {choices.group_size}" if choices.bits == 4 else ""
        how = (
            f"int{choices.bits}{groups}, head {choices.head_bits} bits, towers {towers}; mapped "
            "from the file, runs on the CPU"
        )
    return Finding(group="model", name=name, ok=True, detail=f"{size}, {how}")


def _decoders() -> list[Finding]:
    findings = []
    for package, reads in DECODERS.items():
        try:
            import_module(package)
        except ImportError as error:
            optional = package == "decord"
            detail = f"cannot be imported ({error}); reads {reads}"
            findings.append(Finding(group="decoders", name=package, ok=optional, detail=detail))
        else:
            findings.append(Finding(group="decoders", name=package, ok=True, detail=reads))
    return findings


def _memory() -> list[Finding]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    ram = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    space = f"{disk.free / 2**30:.1f} GiB free here"
    return [
        Finding(group="memory", name="ram", ok=memory.available > 2**30, detail=ram),
        Finding(group="memory", name="disk", ok=disk.free > 2**30, detail=space),
    ]
