"""Our reading and writing against transformers', and against the published tensor list."""

import re
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
)

from omni import presets
from omni.checkpoint import materialise, read_config, save_checkpoint
from omni.loading import as_dtype
from omni.weights_files import stored_tensors
from omni.weights_layout import FILLED, WeightsLayout
from tests.support.tiny_checkpoints import empty_model, tiny_model, write_released

LANGUAGE_MODEL = 31_577_937_344
WHOLE_MODEL = 33_015_546_816
LAYER_SCALE = 81_920


def load(directory, **options):
    return materialise(empty_model(read_config(directory)), directory, **options)


def assert_same_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.endswith("gate.weight"):  # theirs is float32; ours is when it multiplies
            tensor = tensor.to(found[name].dtype)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_what_transformers_saves_we_load(tmp_path, max_shard_size):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)

    assert_same_weights(load(tmp_path), model)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_what_we_save_transformers_loads(tmp_path, max_shard_size):
    model = tiny_model()
    save_checkpoint(model, tmp_path, max_shard_size=max_shard_size)

    theirs = NemotronH_Omni_Reasoning_V3.from_pretrained(
        tmp_path, config=NemotronH_Omni_Reasoning_V3_Config.from_pretrained(tmp_path)
    )

    assert_same_weights(theirs, model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_released_directory_loads_as_transformers_loads_it(tmp_path, dtype):
    model = tiny_model()
    released = write_released(tmp_path, model)
    config = read_config(released)

    ours = load(released, dtype=dtype)
    # transformers reads the same files; its class cannot read the legacy config (spec 12.1).
    theirs = NemotronH_Omni_Reasoning_V3.from_pretrained(
        released, config=empty_model(config).config, dtype=as_dtype(dtype)
    )

    assert_same_weights(ours, theirs)


def test_loaded_weights_give_the_same_logits(tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path)
    ids = torch.tensor([[1, 40, 41, 42]])

    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, load(tmp_path).eval()(input_ids=ids).logits

    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_we_write_the_names_shapes_and_values_that_transformers_writes(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "theirs")
    save_checkpoint(model, tmp_path / "ours")

    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(tmp_path / "ours" / "model.safetensors")

    # Released files lack the identity scales and the indices, and so do ours.
    left_out = theirs.keys() - ours.keys()
    assert all("layer_scale" in name or name.endswith("summary_idxs") for name in left_out)
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --------------------------------------------------------------- the full size, names only


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return empty_model(presets.get("nano-omni-30b-a3b"))


def test_the_full_model_has_the_published_number_of_parameters(full_size):
    total = sum(p.numel() for p in full_size.parameters())

    assert total == WHOLE_MODEL + LAYER_SCALE
    assert sum(p.numel() for p in full_size.language_model.parameters()) == LANGUAGE_MODEL


def test_the_full_model_is_stored_in_the_published_7349_tensors(full_size):
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in full_size.state_dict().items()
        if not FILLED.search(name)
    }

    stored = WeightsLayout.of(full_size.config).stored(shapes)

    # Four constants are in the released files only: two of normalisation, two of the mels.
    assert len(stored) + 4 == 7349
    groups = Counter(re.sub(r"\d+", "N", name.split(".mixer.experts.")[0]) for name in stored)
    assert groups["language_model.backbone.layers.N"] == 23 * 256
    assert groups["language_model.backbone.layers.N.mixer.gate.e_score_correction_bias"] == 23
    assert sum(n for g, n in groups.items() if "radio_model.model.blocks" in g) == 32 * 12
    assert sum(n for g, n in groups.items() if "patch_generator" in g) == 4
    assert sum(n for g, n in groups.items() if g.startswith("mlpN")) == 3
    assert sum(n for g, n in groups.items() if "sound_encoder.encoder.subsampling" in g) == 12
    assert sum(n for g, n in groups.items() if "sound_encoder.encoder.layers" in g) == 24 * 29
    assert sum(n for g, n in groups.items() if g.startswith("sound_projection")) == 3


def test_no_stored_name_of_the_full_model_is_left_to_chance(full_size):
    """Each is made of exactly one whole, one expert, or a query, a key and a value."""
    shapes = {name: tuple(t.shape) for name, t in full_size.state_dict().items()}

    for name, parts in WeightsLayout().stored(shapes).items():
        thirds = [piece.third for _, piece in parts]
        assert thirds in ([None], [0, 1, 2]), name


def test_a_tiny_release_has_as_many_tensors_as_its_parts_say(tmp_path):
    released = write_released(tmp_path, tiny_model())

    # 3 + Mamba 9 + MoE 13 (4 experts) + attention 5; vision 12 + 4 + 2; 3; audio 12 + 29 + 2; 3
    assert len(stored_tensors(released)) == 3 + 9 + 13 + 5 + 18 + 3 + 43 + 3
