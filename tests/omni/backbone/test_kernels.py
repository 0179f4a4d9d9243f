import sys
from types import ModuleType

import pytest
import torch

from omni.backbone import kernels
from omni.backbone.mamba import causal_conv
from omni.backbone.ssd import ssd_scan


@pytest.fixture(autouse=True)
def forget_earlier_tests():
    kernels.self_test.cache_clear()
    yield
    kernels.self_test.cache_clear()


def plain_scan(x, dt, A, B, C, chunk_size, *, D, initial_states, seq_idx, return_final_states):
    assert return_final_states
    return ssd_scan(
        *(x, dt, A, B, C, D),
        initial_state=initial_states,
        segment_ids=seq_idx,
        chunk_size=chunk_size,
    )


def plain_conv(x, weight, bias, *, seq_idx, initial_states):
    window = None if initial_states is None else initial_states.transpose(1, 2)
    y = causal_conv(x.transpose(1, 2), weight.unsqueeze(1), bias, window, seq_idx)
    return y.transpose(1, 2)


def install(monkeypatch, scan, conv):
    """Put stand-ins for the two packages where the import finds them."""
    combined = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    combined.mamba_chunk_scan_combined = scan
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, combined.__name__, combined)
    package = ModuleType("causal_conv1d")
    package.causal_conv1d_fn = conv
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)


def test_kernels_that_agree_are_used(monkeypatch):
    install(monkeypatch, plain_scan, plain_conv)
    report = kernels.self_test("cpu")
    assert report.scan.usable
    assert report.conv.usable
    assert "agrees within" in report.scan.detail


def test_kernels_that_ignore_segments_are_refused(monkeypatch):
    def scan(*args, **options):
        return plain_scan(*args, **options | {"seq_idx": None})

    def conv(*args, **options):
        return plain_conv(*args, **options | {"seq_idx": None})

    install(monkeypatch, scan, conv)
    report = kernels.self_test("cpu")
    assert not report.scan.usable
    assert not report.conv.usable
    assert "differs from our path" in report.scan.detail


def test_kernels_with_wrong_gradients_are_refused(monkeypatch):
    def scan(*args, **options):
        y, state = plain_scan(*args, **options)
        return y.detach() + 0 * args[0], state

    install(monkeypatch, scan, plain_conv)
    assert not kernels.self_test("cpu").scan.usable


def test_kernels_that_give_nan_are_refused(monkeypatch):
    install(monkeypatch, plain_scan, lambda *a, **k: plain_conv(*a, **k) * torch.nan)
    assert not kernels.self_test("cpu").conv.usable


def test_kernels_that_do_not_launch_are_refused_with_their_reason(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no kernel image is available")

    install(monkeypatch, broken, plain_conv)
    assert "no kernel image is available" in kernels.self_test("cpu").scan.detail


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    report = kernels.self_test("cpu")
    assert "not installed" in report.scan.detail
    assert "not installed" in report.conv.detail


def test_a_machine_without_cuda_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = kernels.self_test()
    assert report.device == "cuda"
    assert report.scan.detail == "CUDA is not available"
