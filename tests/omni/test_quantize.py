"""`omni quantize`: files as in memory, resumable, refusals with a way out."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import omni
from omni import quantize as module
from omni.assistant import EMBEDDED_PATH
from omni.checkpoint import read_config, save_checkpoint
from omni.doctor import examine
from omni.errors import CheckpointError, RequestError
from omni.memory import required_bytes
from omni.model import OmniModel
from omni.quantization import QuantizationConfig, quantize_weights
from omni.quantize import quantize_checkpoint
from omni.weights_files import stored_tensors
from tests.support.tiny_checkpoints import tiny_model, write_released

CHOICES = [
    QuantizationConfig(bits=8),
    QuantizationConfig(bits=4, group_size=32),
    QuantizationConfig(bits=4, towers=True, head_bits=16),
]


@pytest.fixture
def released(tmp_path):
    return write_released(tmp_path, tiny_model())


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("stretch", [1, 2**24])
def test_files_hold_what_quantising_in_memory_gives(tmp_path, monkeypatch, choices, stretch):
    monkeypatch.setattr(module, "STRETCH_VALUES", stretch)
    source = EMBEDDED_PATH
    if stretch == 1:  # a step for every 64 rows, and files of one tensor
        source = tmp_path / "float32"
        save_checkpoint(OmniModel.from_pretrained(EMBEDDED_PATH), source, max_shard_size=2_000_000)
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1_000_000)
    quantize_checkpoint(source, tmp_path / "out", choices)
    loaded = OmniModel.from_pretrained(tmp_path / "out").state_dict()
    expected = quantize_weights(OmniModel.from_pretrained(EMBEDDED_PATH), choices).state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.endswith("table"):  # which stays in the dtype of its file
            assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float()), name


def test_the_released_layout_with_one_tensor_per_expert_is_read(released, tmp_path):
    choices = QuantizationConfig(bits=8)
    summary = quantize_checkpoint(released, tmp_path / "out", choices)
    loaded = OmniModel.from_pretrained(tmp_path / "out").state_dict()
    expected = quantize_weights(OmniModel.from_pretrained(released), choices).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name].float(), tensor.float()), name
    floats = OmniModel.from_pretrained(released)
    experts = sum(p.numel() for n, p in floats.named_parameters() if ".experts." in n)
    assert summary.quantized > experts


@pytest.mark.skipif(sys.platform != "linux", reason="reads the maps of the process from /proc")
def test_weights_are_mapped_and_not_read(tmp_path):
    quantize_checkpoint(EMBEDDED_PATH, tmp_path / "out", QuantizationConfig(bits=4))
    model = OmniModel.from_pretrained(tmp_path / "out")
    weight = model.language_model.model.layers[1].mixer.experts.up_proj.weight
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in maps if str(tmp_path / "out") in line]
    spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in mapped]
    assert any(start <= weight.data_ptr() < end for start, end in spans)
    assert weight.data_ptr() % 64 == 0


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(released, tmp_path):
    choices = QuantizationConfig(bits=8)
    quantize_checkpoint(released, tmp_path / "whole", choices)
    seen = []

    def stop(file):
        seen.append(file.name)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(released, tmp_path / "out", choices, before_file=stop)
    assert not (tmp_path / "out").exists()
    again = []
    quantize_checkpoint(
        released, tmp_path / "out", choices, before_file=lambda file: again.append(file.name)
    )
    assert again == [seen[1], *again[1:]]
    assert len(again) == 2
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_stopped_run_with_other_options_is_refused(released, tmp_path):
    def stop(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            released, tmp_path / "out", QuantizationConfig(bits=8), before_file=stop
        )
    with pytest.raises(RequestError, match=r"out.partial holds a conversion .*other options"):
        quantize_checkpoint(released, tmp_path / "out", QuantizationConfig(bits=4))


def test_refusals_say_what_to_do(released, tmp_path, monkeypatch):
    choices = QuantizationConfig(bits=8)
    out = tmp_path / "out"
    quantize_checkpoint(released, out, choices)
    with pytest.raises(RequestError, match="out exists already; give a new directory"):
        quantize_checkpoint(released, out, choices)
    with pytest.raises(CheckpointError, match=r"is quantised already.*float checkpoint"):
        quantize_checkpoint(out, tmp_path / "twice", choices)
    with pytest.raises(CheckpointError, match=r"The model is quantised.*cannot be saved"):
        OmniModel.from_pretrained(out).save_pretrained(tmp_path / "saved")
    with pytest.raises(RequestError, match=r"is quantised, which runs on the CPU only.*to meta"):
        OmniModel.from_pretrained(out, device="meta", check_free_memory=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RequestError, match=r"takes 0.00 GiB but 0.00 GiB is free"):
        quantize_checkpoint(released, tmp_path / "full", choices)
    next(released.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 files .* are missing"):
        quantize_checkpoint(released, tmp_path / "incomplete", choices)


def test_the_config_says_how_it_was_made_and_doctor_repeats_it(tmp_path):
    out = tmp_path / "out"
    choices = QuantizationConfig(bits=4, group_size=32)
    quantize_checkpoint(EMBEDDED_PATH, out, choices)
    assert QuantizationConfig.of(read_config(out)) == choices
    fields = json.loads((out / "config.json").read_text())["quantization_config"]
    assert fields["quant_method"] == "omni"
    detail = examine(str(out))[-1].detail
    assert "int4 in groups of 32, head 8 bits, towers not quantised; mapped" in detail
    assert required_bytes(out) == sum(
        t.num_elements * t.dtype.itemsize for t in stored_tensors(out).values()
    )


def test_a_quantised_checkpoint_answers(tmp_path):
    quantize_checkpoint(EMBEDDED_PATH, tmp_path / "out", QuantizationConfig(bits=8))
    assistant = omni.load(tmp_path / "out")
    assert assistant.ask("What is your name?", max_new_tokens=8).text
