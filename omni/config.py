"""The model config: one strict class for released, transformers-written and own checkpoints.

`OmniConfig` keeps the field names of transformers' `NemotronH_Omni_Reasoning_V3_Config`
and adds what that class leaves to the processors: delimiter token ids, normalisation,
grid bounds and the token-reduction defaults. Reading a config goes in four steps:

1. rename legacy field names (`llm_config` -> `text_config`, ...);
2. lift what released files hide inside `vision_config` (`args.min_num_patches`, ...);
3. build the three sub-configs, mending what released files leave out;
4. refuse unknown top-level keys, keeping the known but unused ones in `released_extras`.
"""

import difflib
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from omni.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MODALITIES = ("image", "video", "audio")

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

# Spellings of `model_type` and `architectures` under which this architecture was published.
OMNI_MODEL_TYPES = frozenset(
    {"nemotron_h_omni", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"}
)
V2_VL_MODEL_TYPES = frozenset({"NemotronH_Nano_VL_V2"})

# fmt: off
# Keys that published files carry and that change nothing here; kept in `released_extras`.
HARMLESS_KEYS = frozenset({
    "attn_implementation", "auto_map", "bos_token_id", "dynamic_image_size", "eos_token_id",
    "hidden_size", "ignore_index", "image_processor_type", "image_tag_type",
    "img_context_token", "img_end_token", "img_start_token", "initializer_range",
    "is_composition", "keys_to_ignore_at_inference", "max_position_embeddings",
    "max_sequence_length", "min_dynamic_patch", "pad2square", "pad_token_id", "patch_size",
    "processor_class", "select_layer", "sep_token_id", "sound_context_token", "sound_end_token",
    "sound_start_token", "template", "tie_word_embeddings", "tokenizer_class", "tokenizer_type",
    "use_backbone_lora", "use_cache", "use_llm_lora", "video_context_token", "vocab_size",
})

# Keys that `PreTrainedConfig.__post_init__` itself understands.
BASE_KEYS = frozenset({
    "attn_implementation", "experts_implementation", "name_or_path", "num_labels",
    "output_attentions", "quantization_config", "torch_dtype",
})
# fmt: on

# Read from `vision_config` or `vision_config.args` when the top level does not have them.
VISION_LIFTED = (
    "min_num_patches",
    "max_num_patches",
    "video_target_num_patches",
    "video_maintain_aspect_ratio",
    "norm_mean",
    "norm_std",
)

# timm names in `vision_config.args.model` -> (hidden_size, num_hidden_layers, num_heads).
VIT_SIZES = {
    "vit_base_patch16_224": (768, 12, 12),
    "vit_large_patch16_224": (1024, 24, 16),
    "vit_huge_patch16_224": (1280, 32, 16),
}

LAYER_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


@strict
class OmniConfig(PreTrainedConfig):
    """Everything that decides the shapes and the prompt layout of an `OmniModel`.

    Args:
        text_config: Decoder; a `NemotronHConfig` unless its `model_type` names another
            causal language model that transformers knows.
        vision_config: Vision tower; a `RadioConfig` unless its `model_type` names another.
        audio_config: Parakeet encoder, or None for a model without hearing.
        vision_hidden_size: Width of the vision tower; by default that of `vision_config`.
        projector_hidden_size: Inner width of the vision projector.
        downsample_ratio: Pixel shuffle of the vision features, per side (0.5 = 4x fewer).
        ps_version: Pixel-shuffle order; only `v2` is defined.
        force_image_size: Tile side in pixels where images are tiled.
        dynamic_resolution: True: one grid per image of `min_num_patches` to
            `max_num_patches` patches. False: tiles of `force_image_size` (V2-VL).
        max_num_tiles: Most tiles per image when tiling.
        use_thumbnail: Whether tiling adds a thumbnail of the whole image.
        min_num_patches: Fewest patches of an image grid.
        max_num_patches: Most patches of an image grid.
        video_target_num_patches: Patches of a video frame, about.
        video_maintain_aspect_ratio: Whether video frames keep their aspect.
        video_temporal_patch_size: Frames in one tubelet; 1 means frames go alone.
        video_pruning_rate: Fraction of video tokens removed by EVS, 0 <= rate < 1.
        norm_mean: Per-channel mean of pixels in 0..1.
        norm_std: Per-channel deviation of pixels in 0..1.
        image_token_id: Placeholder of image and video embeddings.
        video_token_id: The id that published configs reserve for video.
        audio_token_id: Placeholder of audio embeddings.
        img_start_token_id: Delimiter before vision embeddings.
        img_end_token_id: Delimiter after vision embeddings.
        audio_start_token_id: Delimiter before audio embeddings.
        audio_end_token_id: Delimiter after audio embeddings.
        reduction: Reducer spec per modality ("image", "video", "audio"), applied after the
            projector unless a request says otherwise. By default `evs(video_pruning_rate)`
            for video when that rate is not 0.
        released_extras: Known keys of published files that have no effect here.

    Raises:
        ConfigError: Unknown keys, contradicting values, an unknown `model_type`.
    """

    model_type = "nemotron_h_omni"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="radio",
            init_kwargs={"video_temporal_patch_size": 2},
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="nemotron_h"),
        "audio_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="parakeet_encoder",
            init_kwargs={"attention_bias": False, "scale_input": False},
            optional=True,
        ),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    vision_hidden_size: int | None = None
    projector_hidden_size: int = 4096
    downsample_ratio: float = 0.5
    ps_version: str = "v2"
    force_image_size: int | None = None
    dynamic_resolution: bool | None = None
    max_num_tiles: int = 12
    use_thumbnail: bool = True
    min_num_patches: int | None = None
    max_num_patches: int | None = None
    video_target_num_patches: int | None = None
    video_maintain_aspect_ratio: bool | None = None
    video_temporal_patch_size: int | None = None
    video_pruning_rate: float | int = 0.0
    norm_mean: list[float] | tuple[float, ...] | None = None
    norm_std: list[float] | tuple[float, ...] | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    img_start_token_id: int | None = None
    img_end_token_id: int | None = None
    audio_start_token_id: int | None = None
    audio_end_token_id: int | None = None
    reduction: dict[str, str] | None = None
    released_extras: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Run the four steps of the module docstring, then those of transformers."""
        _rename_legacy(self, kwargs)
        model_type = _check_model_type(kwargs.pop("model_type", None))
        vision = _as_dict_or_config(self.vision_config, "vision_config")
        is_v2_vl = _is_v2_vl(self, model_type, vision)
        _lift_vision_fields(self, vision)
        if self.dynamic_resolution is None:
            self.dynamic_resolution = not is_v2_vl
        self._settle_temporal_patch_size(vision, default=1 if is_v2_vl else 2)
        self.released_extras = _split_extras(type(self), self.released_extras, kwargs)

        self.vision_config = _build_vision(vision, self.released_extras.get("patch_size"))
        self.text_config = _build_text(_as_dict_or_config(self.text_config, "text_config"))
        if self.audio_config is not None:
            self.audio_config = _build_audio(_as_dict_or_config(self.audio_config, "audio_config"))
        self._settle_vision_width()
        self._settle_defaults()
        super().__post_init__(**kwargs)

    @property
    def tubelet_frames(self) -> int:
        """Frames that share one vision token; 1 for models without a video embedder."""
        return self.video_temporal_patch_size or 1

    @property
    def merge_size(self) -> int:
        """Patches per side that pixel shuffle joins to one token (2 for a ratio of 0.5)."""
        return round(1 / self.downsample_ratio)

    @property
    def has_audio(self) -> bool:
        """Whether the model has an audio tower."""
        return self.audio_config is not None

    @property
    def projector_input_size(self) -> int:
        """Width of pixel-shuffled features: `vision_hidden_size / downsample_ratio**2`."""
        return (self.vision_hidden_size or 0) * int(1 / self.downsample_ratio) ** 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config from a parsed `config.json`.

        Raises:
            ConfigError: As the class, and for values of a wrong type.
        """
        try:
            return super().from_dict(dict(config_dict), **kwargs)
        except StrictDataclassError as error:
            raise ConfigError(f"config.json: {_one_line(error)}. Correct the value.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, `released_extras` back at the top level.

        `auto_map` is left out: it points at code files that we neither read nor write.
        """
        fields: dict[str, Any] = super().to_dict()
        extras = fields.pop("released_extras", None) or {}
        for key, value in extras.items():
            if key != "auto_map":
                fields.setdefault(key, value)
        return fields

    def _settle_temporal_patch_size(self, vision: "dict | PreTrainedConfig", default: int) -> None:
        """Make the top-level value and that of the vision tower one (spec 12.1 B3)."""
        inner = _get(vision, "video_temporal_patch_size")
        outer = self.video_temporal_patch_size
        if outer is None:
            outer = inner if inner is not None else default
        if inner not in (None, outer):
            raise ConfigError(
                f"video_temporal_patch_size is {outer} but vision_config has {inner}; "
                "both describe the same embedder. Make them equal."
            )
        self.video_temporal_patch_size = outer
        # The tower spells "no video embedder" as None where the top level says 1.
        if isinstance(vision, dict):
            vision["video_temporal_patch_size"] = outer if outer > 1 else None

    def _settle_vision_width(self) -> None:
        width = getattr(self.vision_config, "hidden_size", None)
        if self.vision_hidden_size is None:
            self.vision_hidden_size = width
        if width is not None and width != self.vision_hidden_size:
            raise ConfigError(
                f"vision_hidden_size is {self.vision_hidden_size} but vision_config.hidden_size "
                f"is {width}. Make them equal."
            )

    def _settle_defaults(self) -> None:
        """Fill what is still None, then check ranges."""
        defaults = {
            "min_num_patches": 1024,
            "max_num_patches": 13312,
            "video_target_num_patches": 1024,
            "video_maintain_aspect_ratio": True,
            "norm_mean": list(CLIP_MEAN),
            "norm_std": list(CLIP_STD),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        rate = self.video_pruning_rate
        if not 0 <= rate < 1:
            raise ConfigError(
                f"video_pruning_rate is {rate}; it is the fraction of video tokens removed, "
                "from 0 up to but not including 1."
            )
        if self.reduction is None:
            self.reduction = {"video": f"evs({rate})"} if rate > 0 else {}
        for modality in self.reduction:
            if modality not in MODALITIES:
                raise ConfigError(
                    f"reduction names the modality {modality!r}; expected one of "
                    f"{', '.join(MODALITIES)}."
                )
        if self.ps_version != "v2":
            raise ConfigError(
                f"ps_version is {self.ps_version!r}; only 'v2' is supported. Checkpoints with "
                "another pixel-shuffle order cannot be used."
            )


def _rename_legacy(config: OmniConfig, kwargs: dict[str, Any]) -> None:
    for legacy, name in LEGACY_NAMES.items():
        value = kwargs.pop(legacy, None)
        if value is None:
            continue
        current = getattr(config, name)
        if current is None or current == getattr(type(config), name, None):
            setattr(config, name, value)
        elif current != value:
            raise ConfigError(
                f"config has both {name} and its legacy name {legacy} with different values; "
                f"remove {legacy}."
            )


def _check_model_type(model_type: str | None) -> str:
    if not model_type or model_type in OMNI_MODEL_TYPES or model_type in V2_VL_MODEL_TYPES:
        return model_type or ""
    raise ConfigError(
        f"model_type is {model_type!r}; expected 'nemotron_h_omni' or a published name "
        f"({', '.join(sorted(OMNI_MODEL_TYPES | V2_VL_MODEL_TYPES))}). A language model alone "
        "goes into an omni config as its text_config."
    )


def _is_v2_vl(config: OmniConfig, model_type: str, vision: "dict | PreTrainedConfig") -> bool:
    """Tell V2-VL by content: early omni exports carry its architecture name (spec 1)."""
    names = {model_type, *(config.architectures or [])}
    if not names & V2_VL_MODEL_TYPES:
        return False
    text = config.text_config if config.text_config is not None else {}
    pattern = _get(text, "hybrid_override_pattern") or ""
    layers = _get(text, "layers_block_type") or []
    return not (
        config.audio_config is not None
        or "E" in pattern
        or "moe" in layers
        or _get(vision, "separate_video_embedder")
        or (config.video_temporal_patch_size or 1) > 1
    )


def _lift_vision_fields(config: OmniConfig, vision: "dict | PreTrainedConfig") -> None:
    args = _get(vision, "args") or {}
    for name in VISION_LIFTED:
        if getattr(config, name) is None:
            inner = _get(vision, name)
            setattr(config, name, inner if inner is not None else _get(args, name))


def _split_extras(
    cls: type[OmniConfig], known: dict[str, Any] | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Take the harmless keys out of `kwargs` and refuse those nobody knows."""
    extras = dict(known or {})
    for key in list(kwargs):
        if key in BASE_KEYS or key.startswith("_"):
            continue
        if key not in HARMLESS_KEYS:
            names = [*cls.__dataclass_fields__, *LEGACY_NAMES]
            nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"config has the unknown key {key!r}; the nearest known one is {nearest!r}. "
                "Correct or remove it."
            )
        extras[key] = kwargs.pop(key)
    return extras


def _build_vision(
    vision: "dict | PreTrainedConfig", top_patch_size: int | None
) -> PreTrainedConfig:
    """RADIO from a released, possibly type-less dict (spec 12.1 B3), or any other tower."""
    if not isinstance(vision, dict):
        return vision
    model_type = vision.pop("model_type", None) or "radio"
    args = vision.get("args") or {}
    looks_like_radio = (
        "radio" in model_type.lower()
        or "RADIOModel" in (vision.get("architectures") or [])
        or str(vision.get("version", "")).startswith(("radio", "c-radio"))
    )
    if model_type not in CONFIG_MAPPING and looks_like_radio:
        model_type = "radio"
    if model_type != "radio":
        return _build("vision_config", model_type, vision)

    vision.pop("auto_map", None)
    if "max_resolution" in vision:
        vision.setdefault("max_img_size", vision["max_resolution"])
    if (timm_name := args.get("model")) is not None and "hidden_size" not in vision:
        if timm_name not in VIT_SIZES:
            raise ConfigError(
                f"vision_config.args.model is {timm_name!r}; sizes are known for "
                f"{', '.join(VIT_SIZES)}. Add hidden_size, num_hidden_layers and "
                "num_attention_heads to vision_config."
            )
        sizes = dict(
            zip(
                ("hidden_size", "num_hidden_layers", "num_attention_heads"),
                VIT_SIZES[timm_name],
                strict=True,
            )
        )
        vision = {**sizes, **vision}
    patch_size = vision.setdefault("patch_size", top_patch_size or 16)
    if top_patch_size not in (None, patch_size):
        raise ConfigError(
            f"patch_size is {top_patch_size} but vision_config.patch_size is {patch_size}. "
            "Make them equal."
        )
    return _build("vision_config", "radio", vision)


def _build_text(text: "dict | PreTrainedConfig") -> PreTrainedConfig:
    if not isinstance(text, dict):
        return text
    model_type = text.pop("model_type", None) or "nemotron_h"
    text.pop("auto_map", None)
    pattern = text.get("hybrid_override_pattern")
    if model_type == "nemotron_h" and pattern is not None:
        unknown = sorted(set(pattern) - set(LAYER_LETTERS))
        if unknown:
            raise ConfigError(
                f"hybrid_override_pattern has the letter {unknown[0]!r}; known are M (Mamba), "
                "E (experts), * (attention) and - (MLP)."
            )
        count = text.get("num_hidden_layers", len(pattern))
        if count != len(pattern):
            raise ConfigError(
                f"num_hidden_layers is {count} but hybrid_override_pattern has {len(pattern)} "
                "letters. Make them agree."
            )
    return _build("text_config", model_type, text)


def _build_audio(audio: "dict | PreTrainedConfig") -> PreTrainedConfig:
    """Parakeet; released files say `parakeet` and mean both flags false (spec 12.1 B1)."""
    if not isinstance(audio, dict):
        return audio
    model_type = audio.pop("model_type", None) or "parakeet_encoder"
    if model_type == "parakeet":
        model_type = "parakeet_encoder"
    audio.pop("auto_map", None)
    if model_type != "parakeet_encoder":
        return _build("audio_config", model_type, audio)
    released = {
        "attention_bias": False,
        "scale_input": False,
        "projection_hidden_size": 4096,
        "projection_bias": False,
    }
    return _build("audio_config", model_type, {**released, **audio})


def _build(name: str, model_type: str, fields: dict[str, Any]) -> PreTrainedConfig:
    if model_type not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{name}.model_type is {model_type!r}, which transformers does not know; "
            f"the nearest known one is {nearest!r}. Remote code is never run."
        )
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} ({model_type}): {_one_line(error)}. Correct it.") from error


def _as_dict_or_config(value: Any, name: str) -> "dict | PreTrainedConfig":
    """Copy a dict (callers reuse theirs), pass a config on, read None as an empty dict."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, PreTrainedConfig):
        return value
    raise ConfigError(f"{name} is a {type(value).__name__}; expected a dict or a config object.")


def _get(source: Any, name: str) -> Any:
    if isinstance(source, dict):
        return source.get(name)
    return getattr(source, name, None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
