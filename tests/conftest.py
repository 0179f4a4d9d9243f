"""What holds for every test: shapes are checked, seeds are fixed, nothing leaves the machine."""

import ipaddress
import os
import random
import socket
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.support.typecheck  # noqa: F401 (the hook finds it among the loaded modules)

# Annotated shapes are checked at every call. The hook must stand before the packages are imported.
install_import_hook(["encoders", "omni", "token_reduction"], "tests.support.typecheck.checked")

# Libraries that know how to stay offline should not even try; the guard below catches the rest.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples in every run, however slow the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# Tensors here are tiny: a second thread costs more than it gives, above all on a busy machine.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Allow our functions inside hypothesis strategies: beartype draws which items it checks."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (other libraries draw from the global state)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse connections that would leave this machine."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
    yield
    patch.undo()


def _local_only(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise RuntimeError(
                f"A test tried to connect to {address[0]!r}; tests may only use this machine."
            )
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False
