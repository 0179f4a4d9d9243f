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


def test_another_c_library_is_left_alone(monkeypatch):
    from omni.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_freed_memory()
