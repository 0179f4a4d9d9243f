"""The compiled library: built once by the machine's C++ compiler, then kept in a cache folder.

    ~/.cache/omni-toolkit/native/step-KEY.so     (or under XDG_CACHE_HOME)

KEY is a digest of the sources, the command, the compiler and the processor, so that nothing is
loaded that was built of other sources or for another machine. The file ends with a digest of what
stands before it: one that was cut off is built again. It is renamed into place when it is whole,
so several processes may build it at once.

Without a compiler, without a folder that only this user may write to, or with OMNI_NATIVE=off,
there is no library, and `Library.get` says why.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omni.backbone.native.table import STRUCTS

SOURCES = Path(__file__).parent / "src"
SWITCH = "OMNI_NATIVE"
"""Environment variable: `off` leaves everything to PyTorch."""
BUILD_S = 120
"""Longest that a compiler may take; alone on a machine it takes about two seconds."""
DIGEST_BYTES = 32


class UnavailableError(Exception):
    """There is no library here; the message says why."""


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded functions."""

    step: Callable[[int, int, int, int], None]
    """(decoder, embedding, output, threads)"""
    product: Callable[[int, int, int, int], None]
    """(matrix, x, y, threads)"""
    experts: Callable[[int, int, int, int, int, int], int]
    """(up, down, routed, x, total, threads); 0 if the processor cannot"""
    round: Callable[[int, int, int, int, int, int | None, int | None, int], None]
    """(x, rows, size, integers, units, integers of the rest, their units, threads)"""
    scale: Callable[[int, int, int, int, int, int, int, int], None]
    """(sums, scale, units, rows, outputs, adds, y, threads)"""

    @classmethod
    def get(cls, wait_s: float = BUILD_S) -> "Library":
        """Return the library, which is loaded or built at the first call of a process.

        Args:
            wait_s: Longest to wait for a compiler, which then goes on beside other work.

        Raises:
            UnavailableError: There is none here, or not yet.
        """
        thread = start_building()
        thread.join(wait_s)
        if thread.is_alive():
            raise UnavailableError("the library is still being built.")
        if isinstance(_found, Library):
            return _found
        raise UnavailableError(str(_found))


_lock = threading.Lock()
_thread: threading.Thread | None = None
_found: Library | str = "the process was forked while the library was sought."


def start_building() -> threading.Thread:
    """Begin to load or build the library beside other work, once per process.

    A process that ends meanwhile waits for the compiler, so that a short one leaves a library for
    the next and no half-made files.
    """
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_find)
            _thread.start()
        return _thread


def _find() -> None:
    global _found
    try:
        _found = load_or_build()
    except UnavailableError as reason:
        _found = str(reason)
    except OSError as error:
        _found = f"the library cannot be built or kept: {error}."


def load_or_build() -> Library:
    """Load the library of this machine from the cache folder, where it is built if it is missing.

    Raises:
        UnavailableError: It cannot be had.
        OSError: The folder cannot be written to.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        raise UnavailableError(f"{SWITCH} is {os.environ[SWITCH]!r}.")
    arguments = command()
    file = file_of(arguments)
    if not _is_whole(file):
        _build(arguments, file)
    return _load(file)


def command() -> list[str]:
    """The compiler and what it is told; no option that would change how the process rounds.

    Raises:
        UnavailableError: There is no compiler.
    """
    wide = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
    exact = ["-fno-math-errno", "-fno-trapping-math"]  # nobody reads errno or the flags of floats
    options = ["-std=c++17", "-O3", "-march=native", *wide, *exact, "-fopenmp", "-fPIC", "-shared"]
    return [find_compiler(), *options]


def file_of(arguments: Sequence[str]) -> Path:
    """Where the library of this command is kept."""
    return _private_folder() / f"step-{_key(arguments)}.so"


def find_compiler() -> str:
    """Path of the C++ compiler.

    Raises:
        UnavailableError: There is none.
    """
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(
            f"no C++ compiler {name!r} was found. Install one (on Debian and Ubuntu: apt install "
            "g++), or name yours in CXX."
        )
    return os.path.realpath(found)


def _key(arguments: Sequence[str]) -> str:
    found = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        found.update(source.read_bytes())
    compiler = Path(arguments[0]).stat()
    found.update(
        repr((list(arguments), compiler.st_size, compiler.st_mtime_ns, _processor())).encode()
    )
    return found.hexdigest()[:16]


def _processor() -> str:
    """What tells processors apart for which a compiler makes different code."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.machine()} {platform.processor()}"
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    names = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return platform.machine() + "\n".join(line for line in first if line.startswith(names))


def _private_folder() -> Path:
    """The cache folder. What lies there is run, so nobody else may write to it."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        raise UnavailableError(
            "this user has no home folder to keep the library in. Set HOME or XDG_CACHE_HOME."
        ) from None
    folder = folder / "omni-toolkit" / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)
    return folder


def _check_owner(path: Path) -> None:
    if os.name != "posix":
        return
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnavailableError(
            f"others may write to {path}, from where code would be run. Let it belong to you, "
            "with mode 700, or remove it."
        )


def _is_whole(file: Path) -> bool:
    """Whether the file ends with the digest of what stands before it."""
    if not file.is_file():
        return False
    _check_owner(file)
    content = file.read_bytes()
    return content[-DIGEST_BYTES:] == hashlib.sha256(content[:-DIGEST_BYTES]).digest()


def _build(arguments: Sequence[str], file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="omni-native-") as folder:
        built = Path(folder) / "step.so"
        whole = [*arguments, str(SOURCES / "step.cpp"), "-o", str(built)]
        try:
            done = subprocess.run(
                whole, capture_output=True, text=True, timeout=BUILD_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{arguments[0]} took longer than {BUILD_S} s.") from None
        if done.returncode or not built.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it made no file"]
            raise UnavailableError(f"{arguments[0]} failed: {said[0]}")
        content = built.read_bytes()
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
    with os.fdopen(handle, "wb") as stream:
        stream.write(content + hashlib.sha256(content).digest())
    os.chmod(name, 0o700)
    os.replace(name, file)


def _load(file: Path) -> Library:
    library = ctypes.CDLL(str(file))
    sizes = (ctypes.c_int64 * len(STRUCTS))()
    library.omni_sizes(sizes)
    expected = [ctypes.sizeof(struct) for struct in STRUCTS]
    if list(sizes) != expected:
        raise UnavailableError(f"{file} has structs of {list(sizes)} bytes, expected {expected}.")
    pointer, number, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.omni_step.argtypes = [*[pointer] * 3, number]
    library.omni_product.argtypes = [*[pointer] * 3, number]
    library.omni_experts.argtypes = [*[pointer] * 5, number]
    library.omni_round.argtypes = [pointer, count, count, *[pointer] * 4, number]
    library.omni_scale.argtypes = [*[pointer] * 3, count, count, number, pointer, number]
    for name in ("omni_step", "omni_product", "omni_round", "omni_scale"):
        getattr(library, name).restype = None
    return Library(
        step=library.omni_step,
        product=library.omni_product,
        experts=library.omni_experts,
        round=library.omni_round,
        scale=library.omni_scale,
    )
