"""Tell the C library to keep freed memory: fresh memory costs more than most tensor operations.

A freed large tensor normally goes back to the kernel, and the next one is filled with zeros page
by page. glibc's `mallopt` (malloc/malloc.h) can switch that off for the running process.
"""

import ctypes
import os
import platform

# Parameters of `mallopt`.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
M_ARENA_MAX = -8

TOP_PAD = 64 * 2**20  # bytes by which the heap grows at a time, beyond what is asked for
NEVER = 2**31 - 1  # the largest int: a heap top smaller than this is not given back
KERNELS = 128  # shapes of products whose code oneDNN keeps; by itself 1,024, a quarter MB each
FEW_ARENAS = 2  # heaps that all threads share; each of them keeps freed blocks of its own


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of giving it back to the system.

    For programs, to be called once at their start; a library must not decide this for the process
    that imports it. The process then keeps the memory of its largest moment until it ends. Threads
    started later share one heap, so that what one has freed serves the other.

    Returns:
        Whether the C library is one that was told: glibc. Elsewhere nothing happens.
    """
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: TOP_PAD, M_ARENA_MAX: 1})


def give_freed_memory_back() -> bool:
    """Undo `keep_freed_memory`: for servers, whose visitors come and go.

    Threads then share two heaps. Otherwise each of a server's first threads gets one of its own,
    and keeps in it what was freed: 3 to 15 MB each, in the web demo.

    Returns:
        Whether the C library is one that was told.
    """
    return _set(
        {
            M_MMAP_MAX: 65536,
            M_TRIM_THRESHOLD: 128 * 2**10,
            M_TOP_PAD: 128 * 2**10,
            M_ARENA_MAX: FEW_ARENAS,
        }
    )


def keep_few_kernels() -> None:
    """Let oneDNN keep the code of fewer shapes of products, unless the user has said how many.

    Media of all sizes are products of all shapes: after 200 files these took 230 MB, and most are
    never seen again. For programs, before the first product
    (https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def _set(parameters: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    results = [mallopt(name, value) for name, value in parameters.items()]
    return all(result == 1 for result in results)
