"""One config class reads every spelling, fills what is left out, and refuses the rest."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig, RadioConfig
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)

from omni.config import OmniConfig
from omni.errors import ConfigError
from tests.support.tiny_checkpoints import (
    TINY_AUDIO,
    TINY_TEXT,
    TINY_VISION,
    released_fields,
    tiny_fields,
)

V2_VL = {
    "architectures": ["NemotronH_Nano_VL_V2"],
    "model_type": "NemotronH_Nano_VL_V2",
    "llm_config": {**TINY_TEXT, "hybrid_override_pattern": "M-*-"},
    "vision_config": {k: v for k, v in TINY_VISION.items() if k != "video_temporal_patch_size"},
    "vit_hidden_size": 8,
    "projector_hidden_size": 16,
}


# ------------------------------------------------------------------------ other spellings


def test_the_released_spelling_and_transformers_spelling_mean_the_same():
    fields = tiny_fields(
        video_token_id=131081,
        video_pruning_rate=0.7,
        min_num_patches=16,
        max_num_patches=64,
        video_target_num_patches=16,
    )
    ours, released = OmniConfig(**fields), OmniConfig.from_dict(released_fields())

    for name in (
        "vision_hidden_size",
        "projector_hidden_size",
        "image_token_id",
        "video_token_id",
        "audio_token_id",
        "video_temporal_patch_size",
        "min_num_patches",
        "max_num_patches",
        "video_target_num_patches",
        "norm_mean",
        "reduction",
    ):
        assert getattr(released, name) == getattr(ours, name), name
    assert released.text_config.to_dict() == ours.text_config.to_dict()
    for name in TINY_VISION:
        assert getattr(released.vision_config, name) == TINY_VISION[name]
    for name in TINY_AUDIO:
        assert getattr(released.audio_config, name) == TINY_AUDIO[name]


def test_released_defects_are_mended():
    config = OmniConfig.from_dict(released_fields())

    assert config.audio_config.model_type == "parakeet_encoder"
    assert config.audio_config.attention_bias is False
    assert config.audio_config.scale_input is False
    assert config.vision_config.model_type == "radio"
    assert config.vision_config.video_temporal_patch_size == 2


def test_explicit_audio_flags_win_over_the_mended_ones():
    config = OmniConfig(**tiny_fields(audio_config={**TINY_AUDIO, "attention_bias": True}))

    assert config.audio_config.attention_bias is True


def test_reading_leaves_the_callers_dict_alone():
    fields = released_fields()

    OmniConfig.from_dict(fields)

    assert fields == released_fields()


@pytest.mark.parametrize("model_type", ["", "radio_model", "RADIO-v2.5", "radio"])
def test_any_radio_like_vision_type_is_radio(model_type):
    vision = {**TINY_VISION, "model_type": model_type}

    assert isinstance(OmniConfig(**tiny_fields(vision_config=vision)).vision_config, RadioConfig)


def test_a_vision_config_without_a_type_is_known_by_its_version():
    vision = {**TINY_VISION, "model_type": "internal", "version": "radio_v2.5-h"}

    assert isinstance(OmniConfig(**tiny_fields(vision_config=vision)).vision_config, RadioConfig)


def test_radio_sizes_come_from_the_timm_name_and_the_table_from_the_resolution():
    vision = {"args": {"model": "vit_large_patch16_224"}, "max_resolution": 1024}

    config = OmniConfig(text_config=TINY_TEXT, vision_config=vision)

    tower = config.vision_config
    assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads) == (1024, 24, 16)
    assert tower.max_img_size == 1024
    assert config.vision_hidden_size == 1024
    with pytest.raises(ConfigError, match=r"args.model is 'vit_odd'; sizes are known for vit_base"):
        OmniConfig(text_config=TINY_TEXT, vision_config={"args": {"model": "vit_odd"}})


def test_the_top_level_wins_over_what_is_hidden_in_vision_config():
    vision = {**TINY_VISION, "args": {"min_num_patches": 4}, "min_num_patches": 8}

    assert OmniConfig(**tiny_fields(vision_config=vision)).min_num_patches == 8
    config = OmniConfig(**tiny_fields(vision_config=vision, min_num_patches=16))
    assert config.min_num_patches == 16


# -------------------------------------------------------------------------------- V2-VL


def test_v2_vl_is_told_by_its_content():
    config = OmniConfig.from_dict(V2_VL)

    assert config.dynamic_resolution is False
    assert config.video_temporal_patch_size == 1
    assert config.vision_config.video_temporal_patch_size is None
    assert (config.img_start_token_id, config.img_end_token_id) == (19, 20)
    assert not config.has_audio


@pytest.mark.parametrize(
    "content",
    [
        {"sound_config": TINY_AUDIO},
        {"llm_config": TINY_TEXT},
        {"vision_config": {**V2_VL["vision_config"], "separate_video_embedder": True}},
        {"video_temporal_patch_size": 2},
    ],
    ids=["hears", "routes", "embeds video apart", "fuses frames"],
)
def test_an_early_omni_export_under_the_name_of_v2_vl_is_omni(content):
    config = OmniConfig.from_dict({**V2_VL, **content})

    assert config.dynamic_resolution is True
    assert config.video_temporal_patch_size == 2
    assert config.img_start_token_id == 21


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("fields", [tiny_fields(), released_fields(), V2_VL])
def test_a_written_config_reads_back_the_same(fields, tmp_path):
    config = OmniConfig.from_dict(fields)
    config.save_pretrained(tmp_path)

    again = OmniConfig.from_pretrained(tmp_path)

    assert again.to_dict() == config.to_dict()


def test_a_config_of_transformers_is_read_and_ours_is_read_by_transformers(tmp_path):
    theirs = NemotronH_Omni_Reasoning_V3_Config(**tiny_fields(video_pruning_rate=0.5))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = OmniConfig.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for again in (
        NemotronH_Omni_Reasoning_V3_Config.from_pretrained(tmp_path / "ours"),
        AutoConfig.from_pretrained(tmp_path / "ours"),
    ):
        for name in ("text_config", "vision_config", "audio_config"):
            expected, found = getattr(theirs, name).to_dict(), getattr(again, name).to_dict()
            assert found == expected, name
        for name in NemotronH_Omni_Reasoning_V3_Config.__annotations__:
            if not name.endswith("_config") and name != "force_image_size":
                assert getattr(again, name) == getattr(theirs, name), name


def test_known_extras_are_kept_but_remote_code_is_not_pointed_at_again(tmp_path):
    config = OmniConfig.from_dict(released_fields())
    config.save_pretrained(tmp_path)

    written = json.loads((tmp_path / "config.json").read_text())

    assert config.released_extras["image_tag_type"] == "internvl"
    assert written["image_tag_type"] == "internvl"
    assert "auto_map" in config.released_extras
    assert "auto_map" not in written
    assert "auto_map" not in written["vision_config"]


def test_another_decoder_may_stand_in():
    text = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).to_dict()

    config = OmniConfig(**tiny_fields(text_config=text))

    assert isinstance(config.text_config, LlamaConfig)


# -------------------------------------------------------------------------------- defaults


def test_pruning_is_on_by_default_when_the_config_has_a_rate():
    assert OmniConfig(**tiny_fields()).reduction == {}
    config = OmniConfig(**tiny_fields(video_pruning_rate=0.7))
    assert config.reduction == {"video": "evs(0.7)"}
    assert OmniConfig(**tiny_fields(video_pruning_rate=0.7, reduction={})).reduction == {}


def test_none_counts_as_not_given():
    config = OmniConfig(**tiny_fields(image_token_id=None, force_image_size=None))

    assert (config.image_token_id, config.force_image_size) == (18, 512)


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"projector_hiden_size": 3},
            "unknown key 'projector_hiden_size'; the nearest known one is 'projector_hidden_size'",
        ),
        ({"image_token_id": 18, "img_context_token_id": 5}, "both image_token_id and its legacy"),
        ({"model_type": "llava"}, "model_type is 'llava'; expected 'nemotron_h_omni'"),
        ({"video_pruning_rate": 1.0}, "video_pruning_rate is 1.0"),
        ({"vision_hidden_size": 9}, "vision_hidden_size is 9 but vision_config.hidden_size is 8"),
        ({"video_temporal_patch_size": 4}, "video_temporal_patch_size is 4 but vision_config has"),
        (
            {"audio_normalize": "bins"},
            "audio_normalize is 'bins'; expected one of per_feature, all",
        ),
        ({"ps_version": "v1"}, "ps_version is 'v1'; only 'v2'"),
        ({"reduction": {"smell": "evs(0.5)"}}, "reduction names the modality 'smell'"),
        ({"patch_size": 14}, "patch_size is 14 but vision_config.patch_size is 2"),
        ({"text_config": 3}, "text_config has the type int; expected a dict"),
        (
            {"text_config": {"model_type": "lama"}},
            "'lama', which transformers does not.*llama",
        ),
        (
            {"text_config": {**TINY_TEXT, "hybrid_override_pattern": "MXE"}},
            "hybrid_override_pattern has the letter 'X'; known are M",
        ),
        (
            {"text_config": {**TINY_TEXT, "num_hidden_layers": 5}},
            "num_hidden_layers is 5 but hybrid_override_pattern has 3 letters",
        ),
        (
            {"vision_config": {**TINY_VISION, "model_type": "my_tower"}},
            "vision_config.model_type is 'my_tower'",
        ),
        (
            {"audio_config": {**TINY_AUDIO, "hidden_size": "8"}},
            r"audio_config .*expected int, got str",
        ),
        ({"projector_hidden_size": "16"}, "config.json: .*expected int, got str"),
    ],
)
def test_a_wrong_value_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        OmniConfig.from_dict({**tiny_fields(), **changes})
