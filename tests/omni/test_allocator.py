import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import psutil
from omni.allocator import keep_freed_memory

assert keep_freed_memory()
block = b"1" * 2**28
del block
print(psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_stays_with_a_process_that_asked_for_it():
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True)
    assert int(found.stdout) > 2**28


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_server_gives_freed_memory_back():
    undo = "from omni.allocator import give_freed_memory_back\nassert give_freed_memory_back()\n"
    measure = MEASURE.replace("block =", f"{undo}block =")
    found = subprocess.run([sys.executable, "-c", measure], capture_output=True, check=True)
    assert int(found.stdout) < 2**28


MEASURE_THREADS = """
import ctypes, threading
from omni.allocator import give_freed_memory_back

assert give_freed_memory_back()
barrier = threading.Barrier(12)
kept = []

def work():
    barrier.wait()  # all at once, as the threads of a server
    kept.append([bytes(1000) for _ in range(2000)])

threads = [threading.Thread(target=work) for _ in range(12)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_threads_of_a_server_share_few_heaps():
    found = subprocess.run([sys.executable, "-c", MEASURE_THREADS], capture_output=True, check=True)
    assert 1 <= found.stdout.count(b"<heap nr=") <= 2


def test_another_c_library_is_left_alone(monkeypatch):
    from omni.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_freed_memory()


@pytest.mark.parametrize(("own", "kept"), [(None, "128"), ("7", "7")])
def test_a_user_says_how_many_kernels_are_kept(monkeypatch, own, kept):
    from omni.allocator import keep_few_kernels

    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    if own is not None:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", own)
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept
