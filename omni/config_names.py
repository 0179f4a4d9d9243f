"""Other spellings of an omni config, translated to the fields of `OmniConfig`.

Released files use older field names, hide some values inside `vision_config`, and leave out
what the class defaults of transformers get wrong (spec 2 and 12.1 B1-B3). `current_fields`
goes in five steps:

1. rename legacy names (`llm_config` -> `text_config`, ...);
2. lift what is hidden (`vision_config.args.min_num_patches`, ...);
3. tell V2-VL, the tiling predecessor, by content;
4. set aside known keys without effect, refuse unknown ones;
5. build the three sub-configs, mending what is left out.
"""

import difflib
from collections.abc import Collection
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from omni.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LEGACY_NAMES = {
    "llm_config": "text_config",
    "sound_config": "audio_config",
    "vit_hidden_size": "vision_hidden_size",
    "img_context_token_id": "image_token_id",
    "video_context_token_id": "video_token_id",
    "sound_context_token_id": "audio_token_id",
    "image_start_token_id": "img_start_token_id",
    "image_end_token_id": "img_end_token_id",
    "sound_start_token_id": "audio_start_token_id",
    "sound_end_token_id": "audio_end_token_id",
    "max_dynamic_patch": "max_num_tiles",
}

# Values of `model_type` and `architectures` under which this architecture was published.
OMNI_NAMES = frozenset(
    {"nemotron_h_omni", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"}
)
V2_VL_NAMES = frozenset({"NemotronH_Nano_VL_V2"})
# What V2-VL differs in (spec 1): tiles, single frames, delimiters 19 and 20.
V2_VL_FIELDS = {
    "dynamic_resolution": False,
    "video_temporal_patch_size": 1,
    "img_start_token_id": 19,
    "img_end_token_id": 20,
}

# fmt: off
# Keys that published files carry and that change nothing here; kept in `released_extras`.
HARMLESS_KEYS = frozenset({
    "auto_map", "bos_token_id", "dynamic_image_size", "eos_token_id", "hidden_size",
    "ignore_index", "image_processor_type", "image_tag_type", "img_context_token",
    "img_end_token", "img_start_token", "initializer_range", "is_composition",
    "max_position_embeddings", "max_sequence_length", "min_dynamic_patch", "pad2square",
    "pad_token_id", "patch_size", "processor_class", "select_layer", "sep_token_id",
    "sound_context_token", "sound_end_token", "sound_start_token", "template",
    "tie_word_embeddings", "tokenizer_class", "tokenizer_type", "use_backbone_lora",
    "use_cache", "use_llm_lora", "video_context_token", "vocab_size",
})
# Keys beside its fields that `PreTrainedConfig` itself understands.
BASE_KEYS = frozenset({
    "attn_implementation", "experts_implementation", "name_or_path", "num_labels",
    "output_attentions", "quantization_config", "torch_dtype",
})
# fmt: on

# Taken from `vision_config` or `vision_config.args` when the top level does not have them.
VISION_LIFTED = (
    "min_num_patches",
    "max_num_patches",
    "video_target_num_patches",
    "video_maintain_aspect_ratio",
    "norm_mean",
    "norm_std",
)

# timm names in `vision_config.args.model` -> hidden_size, num_hidden_layers, num_heads.
VIT_SIZES = {
    "vit_base_patch16_224": (768, 12, 12),
    "vit_large_patch16_224": (1024, 24, 16),
    "vit_huge_patch16_224": (1280, 32, 16),
}

LAYER_LETTERS = {"M": "Mamba", "E": "experts", "*": "attention", "-": "MLP"}


def current_fields(
    given: dict[str, Any], *, own_names: Collection[str], base_names: Collection[str]
) -> dict[str, Any]:
    """Translate the keywords of a config, in any known spelling, to current fields.

    Args:
        given: Keywords, such as a parsed `config.json`; left as it is.
        own_names: Fields of `OmniConfig`.
        base_names: Fields of `PreTrainedConfig`.

    Returns:
        Fields and keywords for `OmniConfig`; absent or None ones left out, sub-configs built.

    Raises:
        ConfigError: Unknown keys, contradicting values, an unknown `model_type`.
    """
    fields = {key: value for key, value in given.items() if value is not None}
    _rename_legacy(fields)
    names = {_pop_model_type(fields), *fields.get("architectures", ())}
    for part in ("text_config", "vision_config", "audio_config"):
        if part in fields:
            fields[part] = _copied(fields[part], part)
    vision = fields.setdefault("vision_config", {})
    text = fields.setdefault("text_config", {})
    _lift_from_vision(fields, vision)
    if names & V2_VL_NAMES and not _has_omni_content(fields):
        fields = {**V2_VL_FIELDS, **fields}
    _settle_temporal_patch_size(fields, vision)
    _set_aside_extras(fields, own_names, base_names)

    fields["vision_config"] = _build_vision(vision, fields["released_extras"].get("patch_size"))
    fields["text_config"] = _build_text(text)
    if "audio_config" in fields:
        fields["audio_config"] = _build_audio(fields["audio_config"])
    return fields


def _rename_legacy(fields: dict[str, Any]) -> None:
    for legacy, name in LEGACY_NAMES.items():
        if legacy not in fields:
            continue
        value = fields.pop(legacy)
        if fields.setdefault(name, value) != value:
            raise ConfigError(
                f"config has both {name} and its legacy name {legacy} with different values; "
                f"remove {legacy}."
            )


def _pop_model_type(fields: dict[str, Any]) -> str:
    model_type = fields.pop("model_type", "")
    if not model_type or model_type in OMNI_NAMES | V2_VL_NAMES:
        return model_type
    raise ConfigError(
        f"model_type is {model_type!r}; expected 'nemotron_h_omni' or a published name "
        f"({', '.join(sorted(OMNI_NAMES | V2_VL_NAMES))}). A language model alone goes into an "
        "omni config as its text_config."
    )


def _copied(value: Any, name: str) -> "dict[str, Any] | PreTrainedConfig":
    """Copy a dict, whose owner may use it again; pass a config on."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, PreTrainedConfig):
        return value
    raise ConfigError(
        f"{name} has the type {type(value).__name__}; expected a dict or a config object."
    )


def _lift_from_vision(fields: dict[str, Any], vision: Any) -> None:
    """Move values up, so that a written config states each of them once."""
    if not isinstance(vision, dict):
        return
    if "args" in vision:
        vision["args"] = dict(vision["args"] or {})
    for name in VISION_LIFTED:
        for place in (vision, vision.get("args", {})):
            value = place.pop(name, None)
            if value is not None:
                fields.setdefault(name, value)
    for name in ("norm_mean", "norm_std"):
        if name in fields:
            fields[name] = [float(value) for value in fields[name]]


def _has_omni_content(fields: dict[str, Any]) -> bool:
    """Early omni exports carry the name of V2-VL, but hear, or route, or see tubelets."""
    text, vision = fields["text_config"], fields["vision_config"]
    return bool(
        "audio_config" in fields
        or "E" in (_get(text, "hybrid_override_pattern") or "")
        or "moe" in (_get(text, "layers_block_type") or ())
        or _get(vision, "separate_video_embedder")
        or fields.get("video_temporal_patch_size", 1) > 1
    )


def _settle_temporal_patch_size(fields: dict[str, Any], vision: Any) -> None:
    """Make the top-level value and that of the vision tower one (spec 12.1 B3)."""
    inner = _get(vision, "video_temporal_patch_size")
    if inner is None and (isinstance(vision, PreTrainedConfig) or not _is_radio(vision)):
        inner = 1  # the tower spells "no video embedder" as None
    outer = fields.setdefault("video_temporal_patch_size", inner or 2)
    if inner not in (None, outer):
        raise ConfigError(
            f"video_temporal_patch_size is {outer} but vision_config has {inner}; both describe "
            "the same embedder. Make them equal."
        )
    if isinstance(vision, dict) and _is_radio(vision):
        vision["video_temporal_patch_size"] = outer if outer > 1 else None


def _is_radio(vision: dict[str, Any]) -> bool:
    """Recognise RADIO also where the released file leaves `model_type` empty."""
    model_type = vision.get("model_type") or ""
    if model_type in CONFIG_MAPPING:
        return model_type == "radio"
    return (
        not model_type
        or "radio" in model_type.lower()
        or "RADIOModel" in (vision.get("architectures") or ())
        or "radio" in str(vision.get("version", ""))
    )


def _set_aside_extras(
    fields: dict[str, Any], own_names: Collection[str], base_names: Collection[str]
) -> None:
    """Collect the keys without effect and refuse those nobody knows."""
    extras = dict(fields.get("released_extras", {}))
    for key in list(fields):
        if key in own_names or key in base_names or key in BASE_KEYS or key.startswith("_"):
            continue
        if key not in HARMLESS_KEYS:
            known = [*own_names, *LEGACY_NAMES]
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"config has the unknown key {key!r}; the nearest known one is {nearest!r}. "
                "Correct or remove it."
            )
        extras[key] = fields.pop(key)
    fields["released_extras"] = extras


def _build_vision(vision: Any, top_patch_size: int | None) -> PreTrainedConfig:
    """RADIO from a released, possibly type-less dict (spec 12.1 B3), or any other tower."""
    if isinstance(vision, PreTrainedConfig):
        return vision
    is_radio = _is_radio(vision)
    model_type = vision.pop("model_type", None)
    if not is_radio:
        return _build("vision_config", model_type, vision)

    if "max_resolution" in vision:
        vision.setdefault("max_img_size", vision["max_resolution"])
    timm_name = (vision.get("args") or {}).get("model")
    if timm_name is not None and "hidden_size" not in vision:
        if timm_name not in VIT_SIZES:
            raise ConfigError(
                f"vision_config.args.model is {timm_name!r}; sizes are known for "
                f"{', '.join(VIT_SIZES)}. Add hidden_size, num_hidden_layers and "
                "num_attention_heads to vision_config."
            )
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        vision.update(zip(names, VIT_SIZES[timm_name], strict=True))
    patch_size = vision.setdefault("patch_size", top_patch_size or 16)
    if top_patch_size not in (None, patch_size):
        raise ConfigError(
            f"patch_size is {top_patch_size} but vision_config.patch_size is {patch_size}. Make "
            "them equal."
        )
    return _build("vision_config", "radio", vision)


def _build_text(text: Any) -> PreTrainedConfig:
    if isinstance(text, PreTrainedConfig):
        return text
    model_type = text.pop("model_type", None) or "nemotron_h"
    pattern = text.get("hybrid_override_pattern")
    if model_type == "nemotron_h" and pattern is not None:
        unknown = sorted(set(pattern) - set(LAYER_LETTERS))
        if unknown:
            letters = ", ".join(f"{letter} ({name})" for letter, name in LAYER_LETTERS.items())
            raise ConfigError(
                f"hybrid_override_pattern has the letter {unknown[0]!r}; known are {letters}."
            )
        count = text.get("num_hidden_layers", len(pattern))
        if count != len(pattern):
            raise ConfigError(
                f"num_hidden_layers is {count} but hybrid_override_pattern has {len(pattern)} "
                "letters. Make them agree."
            )
    return _build("text_config", model_type, text)


def _build_audio(audio: Any) -> PreTrainedConfig:
    """Parakeet; released files say `parakeet` and mean both flags false (spec 12.1 B1)."""
    if isinstance(audio, PreTrainedConfig):
        return audio
    model_type = audio.pop("model_type", None) or "parakeet_encoder"
    if model_type == "parakeet":
        model_type = "parakeet_encoder"
    if model_type == "parakeet_encoder":
        released = {
            "attention_bias": False,
            "scale_input": False,
            "projection_hidden_size": 4096,
            "projection_bias": False,
        }
        audio = {**released, **audio}
    return _build("audio_config", model_type, audio)


def _build(name: str, model_type: str, fields: dict[str, Any]) -> PreTrainedConfig:
    fields.pop("auto_map", None)
    if model_type not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{name}.model_type is {model_type!r}, which transformers does not know; the nearest "
            f"known one is {nearest!r}. Remote code is never run."
        )
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} ({model_type}): {reason}. Correct it.") from error


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, dict) else getattr(source, name, None)
