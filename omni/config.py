"""The model config: one strict class for released, transformers-written and own checkpoints.

`OmniConfig` keeps the field names of transformers' `NemotronH_Omni_Reasoning_V3_Config`
and adds what that class leaves to the processors: delimiter token ids, normalisation,
grid bounds and the token-reduction defaults. Other spellings of the same facts are
translated by `omni/config_names.py` before a field is set.
"""

from dataclasses import field, fields
from typing import Any, ClassVar, get_args

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from encoders.audio.features import Normalize
from omni.config_names import CLIP_MEAN, CLIP_STD, current_fields
from omni.errors import ConfigError

MODALITIES = ("image", "video", "audio")


@strict
class OmniConfig(PreTrainedConfig):
    """Everything that decides the shapes and the prompt layout of an `OmniModel`.

    Takes keywords only: the fields below, those of `PreTrainedConfig`, and their legacy
    names. A field that is None counts as not given. Token ids default to the released ones.

    Args:
        text_config: Decoder; a `NemotronHConfig` unless its `model_type` names another
            causal language model that transformers knows. A dict is turned into a config.
        vision_config: Vision tower; a `RadioConfig` unless its `model_type` names another.
        audio_config: Parakeet encoder, or None for a model without hearing.
        vision_hidden_size: Width of the vision tower.
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
        audio_normalize: Over what spectrograms are normalised: `per_feature`, each mel bin of a
            clip by itself, or `all_features` of it together.
        image_token_id: Placeholder of image and video embeddings.
        video_token_id: The id that published configs reserve for video; not a real token.
        audio_token_id: Placeholder of audio embeddings.
        img_start_token_id: Delimiter before vision embeddings.
        img_end_token_id: Delimiter after vision embeddings.
        audio_start_token_id: Delimiter before audio embeddings.
        audio_end_token_id: Delimiter after audio embeddings.
        reduction: Reducer spec per modality ("image", "video", "audio"), applied after the
            projector unless a request says otherwise. Not given, it is
            `evs(video_pruning_rate)` for video when that rate is not 0; `{}` switches it off.
        token_scorers: Trained scorers for the reducer `learned`: for a modality the lowest and
            highest rate that it was trained at. None by default.
        resamplers: Trained queries for the reducer `resampler`: for a modality the fewest and the
            most that it was trained with. None by default.
        released_extras: Known keys of published files that have no effect here.

    Raises:
        ConfigError: Unknown keys, contradicting values, an unknown `model_type`.
    """

    model_type = "nemotron_h_omni"
    # For transformers, which walks over the parts of a composite config by this table.
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="radio"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="nemotron_h"),
        "audio_config": SubConfigSpec(
            config_class=AutoConfig, model_type="parakeet_encoder", optional=True
        ),
    }

    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    vision_hidden_size: int = 1280
    projector_hidden_size: int = 4096
    downsample_ratio: float = 0.5
    ps_version: str = "v2"
    force_image_size: int = 512
    dynamic_resolution: bool = True
    max_num_tiles: int = 12
    use_thumbnail: bool = True
    min_num_patches: int = 1024
    max_num_patches: int = 13312
    video_target_num_patches: int = 1024
    video_maintain_aspect_ratio: bool = True
    video_temporal_patch_size: int = 2
    video_pruning_rate: float | int = 0.0
    norm_mean: list[float] = field(default_factory=lambda: list(CLIP_MEAN))
    norm_std: list[float] = field(default_factory=lambda: list(CLIP_STD))
    audio_normalize: Normalize = "per_feature"
    image_token_id: int = 18
    video_token_id: int = 131081
    audio_token_id: int = 27
    img_start_token_id: int = 21
    img_end_token_id: int = 22
    audio_start_token_id: int = 28
    audio_end_token_id: int = 29
    reduction: dict[str, str] = field(default_factory=dict)
    token_scorers: dict[str, list[float]] = field(default_factory=dict)
    resamplers: dict[str, list[int]] = field(default_factory=dict)
    released_extras: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **given: Any) -> None:
        own = {f.name: f for f in fields(type(self)) if f.name not in _BASE_FIELDS}
        values = current_fields(given, own_names=set(own), base_names=_BASE_FIELDS)
        _check_values(values)
        for name, spec in own.items():
            if name in values:
                setattr(self, name, values.pop(name))
            elif callable(spec.default_factory):
                setattr(self, name, spec.default_factory())
            else:
                setattr(self, name, spec.default)
        super().__init__(**values)

    @property
    def has_audio(self) -> bool:
        """Whether the model has an audio tower."""
        return self.audio_config is not None

    @property
    def tubelet_frames(self) -> int:
        """Frames that share one vision token; 1 for models without a video embedder."""
        return self.video_temporal_patch_size or 1

    @property
    def merge_size(self) -> int:
        """Patches per side that pixel shuffle joins to one token (2 for a ratio of 0.5)."""
        return round(1 / self.downsample_ratio)

    @property
    def projector_input_size(self) -> int:
        """Width of pixel-shuffled features: `vision_hidden_size / downsample_ratio**2`."""
        return self.vision_hidden_size * int(1 / self.downsample_ratio) ** 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config from a parsed `config.json`.

        Raises:
            ConfigError: As the class, and for values of a wrong type.
        """
        try:
            return super().from_dict(dict(config_dict), **kwargs)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"config.json: {reason}. Correct the value.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, `released_extras` back at the top level.

        `auto_map` is left out: it points at code files that we neither read nor write.
        """
        written: dict[str, Any] = super().to_dict()
        for key, value in written.pop("released_extras", {}).items():
            if key != "auto_map":
                written.setdefault(key, value)
        return written


_BASE_FIELDS = frozenset(f.name for f in fields(PreTrainedConfig))


def _check_values(values: dict[str, Any]) -> None:
    """Refuse what contradicts itself, and derive the default reduction."""
    width = getattr(values["vision_config"], "hidden_size", None)
    if width is not None and values.setdefault("vision_hidden_size", width) != width:
        raise ConfigError(
            f"vision_hidden_size is {values['vision_hidden_size']} but "
            f"vision_config.hidden_size is {width}. Make them equal."
        )
    rate = values.get("video_pruning_rate", 0.0)
    if isinstance(rate, int | float) and not 0 <= rate < 1:
        raise ConfigError(
            f"video_pruning_rate is {rate}; it is the fraction of video tokens removed, from 0 "
            "up to but not including 1."
        )
    if "reduction" not in values:
        values["reduction"] = {"video": f"evs({rate})"} if rate else {}
    for name in ("reduction", "token_scorers", "resamplers"):
        for modality in values.get(name) or {}:
            if modality not in MODALITIES:
                raise ConfigError(
                    f"{name} names the modality {modality!r}; expected one of "
                    f"{', '.join(MODALITIES)}."
                )
    for modality, rates in (values.get("token_scorers") or {}).items():
        if len(rates) != 2 or not 0 <= rates[0] <= rates[1] < 1:
            raise ConfigError(
                f"token_scorers[{modality!r}] is {rates}; expected the lowest and the highest "
                "rate of training, such as [0.0, 0.8]."
            )
    for modality, queries in (values.get("resamplers") or {}).items():
        if len(queries) != 2 or not 1 <= queries[0] <= queries[1]:
            raise ConfigError(
                f"resamplers[{modality!r}] is {queries}; expected the fewest and the most queries "
                "of training, such as [4, 64]."
            )
    normalize = values.get("audio_normalize", "per_feature")
    if normalize not in get_args(Normalize):
        raise ConfigError(
            f"audio_normalize is {normalize!r}; expected one of {', '.join(get_args(Normalize))}."
        )
    if values.get("ps_version", "v2") != "v2":
        raise ConfigError(
            f"ps_version is {values['ps_version']!r}; only 'v2' is supported. Checkpoints with "
            "another pixel-shuffle order cannot be used."
        )
