"""What a model needs is counted exactly, and refused with both numbers when it is not there."""

import ctypes
import sys

import psutil
import pytest
import torch
from torch import nn

from omni.checkpoint import save_checkpoint
from omni.config import OmniConfig
from omni.errors import CheckpointError, NotEnoughMemoryError
from omni.memory import (
    HEADROOM_BYTES,
    cgroup_free_bytes,
    check_memory,
    free_bytes,
    gib,
    release_heap,
    required_bytes,
)
from tests.support.tiny_checkpoints import empty_model, tiny_fields, tiny_model, write_released


def real_bytes(model, dtype=None):
    """Bytes after a plain conversion, router biases excepted."""
    total = 0
    for name, tensor in model.state_dict().items():
        kept = name.endswith("e_score_correction_bias") or not tensor.is_floating_point()
        total += tensor.numel() * (tensor if kept or dtype is None else tensor.to(dtype)).itemsize
    return total


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_an_empty_model_tells_the_bytes_of_the_real_one(dtype):
    empty = empty_model(OmniConfig(**tiny_fields()))

    assert required_bytes(empty, dtype) == real_bytes(tiny_model(), dtype)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_directory_tells_them_from_its_headers(dtype, tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path, max_shard_size="20KB")

    filled_in = 2 * 8 * (dtype or torch.float32).itemsize + 2 * 8  # layer scales and indices
    assert required_bytes(tmp_path, dtype) == real_bytes(model, dtype) - filled_in


def test_unused_tensors_of_a_release_do_not_count(tmp_path):
    model = tiny_model()
    released = write_released(tmp_path, model)
    save_checkpoint(model, tmp_path / "ours")

    assert required_bytes(released, torch.float32) == required_bytes(
        tmp_path / "ours", torch.float32
    )


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert required_bytes(model) == 128
    model[1].weight = model[0].weight
    assert required_bytes(model) == 64


def test_what_fits_passes_and_one_byte_more_is_refused(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    needed = required_bytes(tmp_path)

    check_memory(tmp_path, free=needed + HEADROOM_BYTES)
    with pytest.raises(NotEnoughMemoryError):
        check_memory(tmp_path, free=needed + HEADROOM_BYTES - 1)


def test_the_refusal_has_both_numbers_and_the_ways_out():
    model = nn.Linear(1024, 1024 * 1024, bias=False, device="meta")

    with pytest.raises(
        NotEnoughMemoryError,
        match=r"needs 4.00 GiB in float32 but 2.00 GiB is free on cpu .*dtype='bfloat16' "
        r"\(2.00 GiB\); device_map='auto' with offload_folder.*smaller model.*quantised",
    ):
        check_memory(model, dtype=torch.float32, free=2 * 1024**3)
    with pytest.raises(NotEnoughMemoryError) as refusal:
        check_memory(model, dtype=torch.bfloat16, free=1024**3)
    assert "dtype=" not in str(refusal.value)


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="found no weights"):
        check_memory(tmp_path)


def test_free_memory_is_measured():
    assert 0 < free_bytes() < 2**50
    assert free_bytes("cpu") > 0


# ------------------------------------------------------------------------- control groups


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_free_bytes(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize("limited", ["", "a", "a/b"])
def test_the_tightest_group_on_the_way_up_counts(tmp_path, limited):
    processes = tmp_path / "cgroup"
    processes.write_text("0::/a/b\n")
    for group in ("", "a", "a/b"):
        (tmp_path / group).mkdir(exist_ok=True)
        limit = "1000" if group == limited else "max"
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text("700\n")
        (tmp_path / group / "memory.stat").write_text("anon 400\ninactive_file 300\nfile 300\n")

    assert cgroup_free_bytes(tmp_path, processes) == 600


def test_version_1_groups_are_read_and_their_no_limit_is_recognised(tmp_path):
    processes = tmp_path / "cgroup"
    processes.write_text("9:cpu,cpuacct:/\n4:memory:/job/7\n0::/\n")
    group = tmp_path / "memory" / "job" / "7"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (group / "memory.usage_in_bytes").write_text("500\n")
    assert cgroup_free_bytes(tmp_path, processes) is None
    (group / "memory.limit_in_bytes").write_text("900\n")
    assert cgroup_free_bytes(tmp_path, processes) == 400


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("100\n")
    (tmp_path / "memory.current").write_text("150\n")

    assert cgroup_free_bytes(tmp_path, tmp_path / "cgroup") == 0


def test_sizes_are_written_in_gib():
    assert gib(66_000_000_000) == "61.47 GiB"


def test_freed_memory_below_a_block_in_use_goes_back_to_the_system():
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        release_heap()  # does nothing, and says nothing
        return
    blocks = [torch.zeros(2**14) for _ in range(1024)]  # 64 KiB each, 64 MiB in all
    last = blocks[-1]
    blocks.clear()
    before = psutil.Process().memory_info().rss
    release_heap()
    assert before - psutil.Process().memory_info().rss > 32 * 2**20
    assert not last.any()
