"""The guards of `conftest.py` really stand."""

import socket

import jaxtyping
import pytest
import torch

from token_reduction import evs_keep_mask


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 80)])
def test_leaving_the_machine_is_refused(address: tuple[str, int]) -> None:
    with (
        socket.socket() as client,
        pytest.raises(RuntimeError, match=f"tried to connect to '{address[0]}'"),
    ):
        client.connect(address)


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_annotated_shapes_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="evs_keep_mask"):
        evs_keep_mask(torch.zeros(8), (2, 2, 2), 0.5)
