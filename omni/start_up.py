"""Starting a program sooner: imports and loading without pauses of the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Hold the garbage collector back while modules are imported and a model is built.

    Both only make objects that stay, and looking through them again and again is a fifth of their
    time (`benchmarks/start_up.py`). At the end they are set aside for good, so that no later
    collection looks at them either. For programs, like `keep_freed_memory`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
