"""Presets build the published models: sizes on the meta device, nothing allocated."""

import pytest
import torch

from omni import presets
from omni.backbone.model import HybridForCausalLM
from omni.config import OmniConfig
from omni.errors import ConfigError

# Published exactly: Nano and 9B. The others fit the size in the model's name.
DECODERS = {
    "nano-30b-a3b": (31_577_937_344, 52),
    "super-120b-a12b": (120_668_687_360, 88),
    "ultra-550b-a55b": (549_308_968_960, 108),
    "nano-9b-v2": (8_888_227_328, 56),
    "nano-12b-v2-vl": (12_310_001_152, 62),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_has_its_published_size(name):
    config = presets.get(name)
    with torch.device("meta"):
        model = HybridForCausalLM(config)

    assert sum(p.numel() for p in model.parameters()) == DECODERS[name][0]
    assert config.num_hidden_layers == DECODERS[name][1]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("nano-30b-a3b", 3.58), ("super-120b-a12b", 12.8), ("ultra-550b-a55b", 56.1)],
)
def test_the_parameters_active_for_a_token_fit_the_name(name, billions):
    config = presets.get(name)
    width = config.moe_latent_size or config.hidden_size
    expert = 2 * width * config.moe_intermediate_size
    idle = (config.n_routed_experts - config.num_experts_per_tok) * expert
    active = DECODERS[name][0] - config.layers_block_type.count("moe") * idle

    assert active / 1e9 == pytest.approx(billions, abs=0.05)


def test_nano_has_its_layers_where_the_published_model_has_them():
    layers = presets.get("nano-30b-a3b").layers_block_type

    kinds = {kind: [i for i, layer in enumerate(layers) if layer == kind] for kind in set(layers)}
    assert kinds["full_attention"] == [5, 12, 19, 26, 33, 42]
    assert len(kinds["linear_attention"]) == len(kinds["moe"]) == 23


def test_the_omni_preset_is_the_released_config():
    config = presets.get("nano-omni-30b-a3b")

    assert isinstance(config, OmniConfig)
    assert (config.vision_hidden_size, config.projector_input_size) == (1280, 5120)
    assert (config.image_token_id, config.audio_token_id) == (18, 27)
    assert (config.min_num_patches, config.max_num_patches) == (1024, 13312)
    assert config.reduction == {"video": "evs(0.7)"}
    assert not config.audio_config.attention_bias
    assert not config.audio_config.scale_input


def test_every_call_returns_a_fresh_config():
    changed = presets.get("nano-9b-v2")
    changed.hidden_size = 1

    assert presets.get("nano-9b-v2").hidden_size == 4480


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="no preset 'nano-30b'; the nearest is 'nano-30b-a3b'"):
        presets.get("nano-30b")
