"""Loading and saving: exact tensors, one copy in memory, and refusals that say what to do."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
)

from omni.checkpoint import (
    EMBEDDED_MODELS,
    materialise,
    read_config,
    resolve_checkpoint,
    save_checkpoint,
)
from omni.config import OmniConfig
from omni.errors import CheckpointError, ConfigError, NotEnoughMemoryError, RequestError
from omni.weights_files import stored_tensors
from omni.weights_layout import WeightsLayout
from tests.support.tiny_checkpoints import (
    TINY_TEXT,
    empty_model,
    tiny_fields,
    tiny_model,
    write_released,
)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def saved(model, tmp_path):
    """A directory saved by our code."""
    save_checkpoint(model, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def released(model, tmp_path):
    return write_released(tmp_path, model)


def load(directory: Path, **options):
    return materialise(empty_model(read_config(directory)), directory, **options)


def edit(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


# ------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("max_shard_size", ["5GB", 20_000, 1])
def test_what_is_saved_is_loaded_back_bit_by_bit(model, tmp_path, max_shard_size):
    save_checkpoint(model, tmp_path, max_shard_size=max_shard_size)

    loaded = load(tmp_path)

    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_saving_what_was_loaded_writes_the_same_files(saved, tmp_path):
    save_checkpoint(load(saved), tmp_path / "again")

    first, second = (load_file(d / "model.safetensors") for d in (saved, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tensors_that_are_not_trivial_are_saved_even_if_released_files_lack_them(model, tmp_path):
    with torch.no_grad():
        model.vision_model.encoder.layer[0].layer_scale1.lambda1.fill_(0.5)

    save_checkpoint(model, tmp_path)

    stored = stored_tensors(tmp_path)
    assert "vision_model.radio_model.model.blocks.0.layer_scale1.lambda1" in stored
    assert "vision_model.radio_model.model.blocks.0.layer_scale2.lambda1" not in stored
    assert load(tmp_path).vision_model.encoder.layer[0].layer_scale1.lambda1.unique() == 0.5


def test_the_released_layout_is_read_with_its_dtypes(model, released):
    loaded = load(released).state_dict()

    for name, tensor in model.state_dict().items():
        kept = name.endswith("e_score_correction_bias") or not tensor.is_floating_point()
        expected = tensor if kept else tensor.bfloat16()
        torch.testing.assert_close(loaded[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, "float16", "torch.bfloat16"])
def test_a_dtype_converts_weights_but_neither_router_biases_nor_counters(released, dtype):
    loaded = load(released, dtype=dtype)

    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.split(".")[-1])
    for name, tensor in loaded.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.float32
        elif name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64
            assert tensor == 12345
        elif tensor.is_floating_point():
            assert tensor.dtype == wanted, name
    assert loaded.config.dtype == wanted
    assert loaded.config.vision_config.dtype == wanted


def test_a_model_built_on_the_meta_device_gets_its_computed_buffers(model, saved):
    with torch.device("meta"):
        empty = NemotronH_Omni_Reasoning_V3(model.config)
    assert empty.audio_tower.encode_positions.inv_freq.is_meta

    materialise(empty, saved)

    torch.testing.assert_close(
        empty.audio_tower.encode_positions.inv_freq,
        model.audio_tower.encode_positions.inv_freq,
        rtol=0,
        atol=0,
    )
    assert torch.equal(empty.language_model.lm_head.weight, model.language_model.lm_head.weight)


def test_a_model_without_hearing_has_no_audio_tensors(tmp_path):
    save_checkpoint(tiny_model(audio_config=None), tmp_path)

    assert not any(name.startswith("sound") for name in stored_tensors(tmp_path))
    assert load(tmp_path).audio_tower is None


def test_another_decoder_keeps_its_own_names_and_its_tied_head(tmp_path):
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        num_nextn_predict_layers=0,
    )
    model = tiny_model(text_config=text)
    save_checkpoint(model, tmp_path)

    stored = stored_tensors(tmp_path)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in stored
    assert "language_model.lm_head.weight" not in stored
    loaded = load(tmp_path).language_model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.language_model.lm_head.weight)


def test_loading_holds_each_weight_once(model, tmp_path, monkeypatch):
    """Counts the bytes of all tensors that loading allocates and that are alive together."""
    wide = tiny_model(
        text_config={**TINY_TEXT, "n_routed_experts": 64, "moe_intermediate_size": 512}
    )
    save_checkpoint(wide, tmp_path, max_shard_size=200_000)
    total = sum(t.nbytes for t in wide.state_dict().values())
    empty = empty_model(read_config(tmp_path))
    alive, peak = {}, 0
    plain_empty = torch.empty

    def counting_empty(*args, **options):
        nonlocal peak
        tensor = plain_empty(*args, **options)
        if not tensor.is_meta:
            alive[id(tensor)] = tensor.nbytes
            weakref.finalize(tensor, alive.pop, id(tensor), None)
            peak = max(peak, sum(alive.values()))
        return tensor

    monkeypatch.setattr(torch, "empty", counting_empty)
    monkeypatch.setattr("omni.weights_files.BUFFER_BYTES", 4096)
    materialise(empty, tmp_path, dtype="bfloat16")

    assert total > 1_000_000
    assert total / 2 * 0.9 < peak < total / 2 * 1.1


# ------------------------------------------------------------------------------- placement


def test_auto_without_an_accelerator_is_the_cpu(saved):
    loaded = load(saved, device_map="auto")

    assert {str(p.device) for p in loaded.parameters()} == {"cpu"}


def test_part_of_a_model_can_stay_on_disk_and_still_run(model, saved, tmp_path):
    ids = torch.tensor([[1, 40, 41, 42]])
    devices = {"": "cpu", "language_model.model.layers": "disk"}

    loaded = load(saved, device_map=devices, offload_folder=tmp_path / "off").eval()

    assert loaded.language_model.model.layers[1].mixer.experts.up_proj.is_meta
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(CheckpointError, match=r"weights are not in memory \(language_model"):
        save_checkpoint(loaded, tmp_path / "again")


def test_disk_without_a_folder_is_refused_with_the_ways_out(saved):
    with pytest.raises(NotEnoughMemoryError, match=r"puts 1 modules on disk. Give offload_folder"):
        load(saved, device_map={"": "cpu", "audio_tower": "disk"})


def test_device_and_device_map_exclude_each_other(saved):
    with pytest.raises(RequestError, match="device='cpu' and device_map='auto'"):
        load(saved, device="cpu", device_map="auto")


def test_a_device_map_must_cover_all_weights(saved):
    with pytest.raises(RequestError, match=r"names no device for \d+ weights \(vision_model"):
        load(saved, device_map={"language_model": "cpu"})


def test_a_dtype_that_is_none_is_refused(saved):
    with pytest.raises(RequestError, match="dtype is 'int4'; expected 'float32'"):
        load(saved, dtype="int4")


# -------------------------------------------------------------------------------- refusals


def test_missing_tensors_are_named(saved):
    edit(saved, lambda t: [t.pop(f"mlp1.{i}.weight") for i in (0, 1)])

    with pytest.raises(CheckpointError, match=r"2 missing: mlp1.0.weight, mlp1.1.weight\. Exp"):
        load(saved)


def test_a_missing_expert_is_named_alone(saved):
    name = "language_model.backbone.layers.1.mixer.experts.2.up_proj.weight"
    edit(saved, lambda t: t.pop(name))

    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        load(saved)


def test_unexpected_tensors_are_named_five_at_most(saved):
    edit(saved, lambda t: t.update({f"extra.{i}": torch.zeros(1) for i in range(7)}))

    with pytest.raises(CheckpointError, match=r"7 unexpected: extra.0, .*extra.4, \.\.\."):
        load(saved)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(saved):
    edit(saved, lambda t: t.update({"mlp1.3.weight": torch.zeros(9, 16)}))

    with pytest.raises(
        CheckpointError, match=r"mlp1.3.weight \(found \(9, 16\), expected \(8, 16\)\)"
    ):
        load(saved)


def test_a_truncated_file_is_refused(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load(saved)


def test_a_missing_shard_is_named(released):
    (released / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"1 of 3 files .* missing \(model-00002-of-00003"):
        load(released)


def test_an_index_cannot_point_outside_its_directory(released):
    index = released / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))

    with pytest.raises(CheckpointError, match=r"names the file '../model.safetensors'"):
        load(released)


def test_a_tensor_in_two_files_is_refused(released):
    (released / "model.safetensors.index.json").unlink()
    one = released / "model-00001-of-00003.safetensors"
    (released / "model-00009-of-00009.safetensors").write_bytes(one.read_bytes())

    with pytest.raises(CheckpointError, match=r"is both in model-00001.* and model-00009"):
        load(released)


def test_pickled_weights_are_never_read(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"found pytorch_model.bin but no safetensors.*conv"):
        load(saved)


def test_a_directory_without_weights_or_config_is_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"found no config.json"):
        read_config(tmp_path)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found no weights; expected model.safetensors"):
        load(saved)


def test_a_config_that_is_no_object_is_refused(saved):
    (saved / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="found a JSON list; expected an object"):
        read_config(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        read_config(saved)


def test_quantised_checkpoints_are_refused_by_config(saved):
    fields = json.loads((saved / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "modelopt"}
    (saved / "config.json").write_text(json.dumps(fields))

    with pytest.raises(CheckpointError, match=r"is quantised .*method modelopt.*BF16 release"):
        read_config(saved)


def test_quantised_checkpoints_are_refused_by_modelopts_file(saved):
    (saved / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')

    with pytest.raises(CheckpointError, match=r"hf_quant_config.json, method NVFP4"):
        read_config(saved)


def test_quantised_checkpoints_are_refused_by_their_tensors(saved):
    name = "language_model.backbone.layers.0.mixer.in_proj.weight"
    edit(saved, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match=rf"found tensor {name} \(F8_E4M3\)"):
        load(saved)
    edit(saved, lambda t: t.update({name: t[name].float(), f"{name}_scale": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=rf"found tensor {name}_scale \(F32\)"):
        load(saved)


# --------------------------------------------------------------------------- where and how


def test_a_directory_resolves_to_itself(saved):
    assert resolve_checkpoint(str(saved)) == saved


def test_a_file_is_answered_with_its_directory(saved):
    with pytest.raises(CheckpointError, match=rf"is a file.*Give {saved}"):
        resolve_checkpoint(saved / "config.json")


@pytest.mark.parametrize("path", ["/no/such/place", "./nothing", "a/b/c", "../up"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(path):
    with pytest.raises(CheckpointError, match="no such directory, and not a hub id"):
        resolve_checkpoint(path)


def test_offline_a_hub_id_is_answered_with_both_ways(tmp_path):
    with pytest.raises(CheckpointError, match=r"local copy, or go online once: hf download a/b"):
        resolve_checkpoint("a/b", local_files_only=True, cache_dir=tmp_path)


def test_a_name_without_an_owner_is_answered_with_the_embedded_models_first(tmp_path):
    def find(name):
        return resolve_checkpoint(name, local_files_only=True, cache_dir=tmp_path)

    embedded = [folder.name for folder in EMBEDDED_MODELS.iterdir()]
    for known in embedded:
        assert find(known) == EMBEDDED_MODELS / known
        with pytest.raises(CheckpointError, match=f"^'{known}' is not a directory here"):
            find(Path(known))  # a path is a folder
        for name in (known.upper(), known.replace("-", "_"), known.replace("-", " "), known[1:]):
            with pytest.raises(CheckpointError, match=f"^There is no .*{name}'; did.*'{known}'"):
                find(name)
    with pytest.raises(CheckpointError, match=r"no embedded model 'tiny'; did you .*'omni-tiny'\?"):
        find("tiny")
    with pytest.raises(
        CheckpointError, match=r"no embedded model 'gpt5', only 'omni-tiny'. 'gpt5'"
    ):
        find("gpt5")
    with pytest.raises(CheckpointError, match=r"^'a/tiny' is not a directory here"):
        find("a/tiny")


def test_a_downloaded_hub_id_is_found_offline(saved, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c0ffee")
    for file in saved.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())

    found = resolve_checkpoint("a/b", local_files_only=True, cache_dir=tmp_path)

    assert found == snapshot
    assert read_config(found).text_config.hidden_size == 8


def test_grid_bounds_come_from_the_preprocessor_file_when_the_config_lacks_them(released):
    fields = json.loads((released / "config.json").read_text())
    del fields["vision_config"]["args"]["max_num_patches"]
    (released / "config.json").write_text(json.dumps(fields))
    beside = {"max_num_patches": 48, "min_num_patches": 1, "patch_size": 2}
    (released / "preprocessor_config.json").write_text(json.dumps(beside))

    config = read_config(released)

    assert (config.min_num_patches, config.max_num_patches) == (16, 48)


def test_a_config_with_an_unknown_key_is_refused_by_name(saved):
    fields = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**fields, "downsampel_ratio": 0.5}))

    with pytest.raises(ConfigError, match=r"'downsampel_ratio'.*nearest known one is 'downsample"):
        read_config(saved)


# ---------------------------------------------------------------------------------- saving


def test_saving_replaces_an_older_save_completely(model, tmp_path):
    save_checkpoint(model, tmp_path, max_shard_size=10_000)
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(model, tmp_path)

    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors", "notes.txt"]
    save_checkpoint(model, tmp_path, max_shard_size=10_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "model.safetensors.index.json").exists()


def test_weights_are_as_readable_as_other_files(saved):
    modes = {oct(file.stat().st_mode) for file in saved.iterdir()}

    assert len(modes) == 1


def test_shards_keep_to_the_limit(model, tmp_path):
    save_checkpoint(model, tmp_path, max_shard_size="20KB")

    largest = max(t.num_elements * 4 for t in stored_tensors(tmp_path).values())
    for file in tmp_path.glob("*.safetensors"):
        total = sum(t.nbytes for t in load_file(file).values())
        assert total <= max(20_000, largest)


def test_a_shard_size_that_is_no_size_is_refused(model, tmp_path):
    for size in ("big", 0, "-1GB"):
        with pytest.raises(RequestError, match=f"max_shard_size is {size!r}"):
            save_checkpoint(model, tmp_path, max_shard_size=size)


def test_saving_needs_weights_and_a_directory(model, tmp_path):
    with pytest.raises(CheckpointError, match="or were never loaded"):
        save_checkpoint(empty_model(OmniConfig(**tiny_fields())), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give a directory"):
        save_checkpoint(model, tmp_path / "file")


def test_a_given_state_dict_is_written_instead_of_the_models_weights(model, tmp_path):
    other = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}

    save_checkpoint(model, tmp_path, state_dict=other)

    assert all((t == 0).all() for t in load_file(tmp_path / "model.safetensors").values())


# ---------------------------------------------------------------------------------- layout


def test_the_layout_and_its_inverse_name_every_tensor_once(model):
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    layout = WeightsLayout()

    stored = layout.stored(shapes)

    seen = [part for parts in stored.values() for part in parts]
    assert len(seen) == len(set(seen))
    assert {name for name, _ in seen} == shapes.keys()
    for name, shape in shapes.items():
        assert all((name, piece) in stored[piece.stored] for piece in layout.pieces(name, shape))


def test_query_key_value_are_joined_in_this_order():
    names = [f"vision_model.encoder.layer.0.attention.{x}_proj.bias" for x in "vkq"]

    joined = WeightsLayout().stored(dict.fromkeys(names, (8,)))

    assert [
        part[0] for part in joined["vision_model.radio_model.model.blocks.0.attn.qkv.bias"]
    ] == (names[::-1])


def test_an_empty_model_of_ours_is_meta_only_for_its_weights():
    with init_empty_weights(include_buffers=False):
        model = NemotronH_Omni_Reasoning_V3(tiny_model().config)
    assert all(p.is_meta for p in model.parameters())
