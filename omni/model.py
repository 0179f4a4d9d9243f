"""OmniModel: towers, reduction, projectors and the hybrid decoder as one transformers model."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

from encoders import ParakeetTower, RadioTower, TokenMerging
from omni.backbone.cache import HybridCache
from omni.backbone.model import HybridForCausalLM
from omni.backbone.moe import lay_columns
from omni.backbone.products import use_fast_products
from omni.checkpoint import materialise, read_config, resolve_checkpoint, save_checkpoint
from omni.config import OmniConfig
from omni.encoding import StageTimes, encode_media
from omni.errors import ConfigError, RequestError
from omni.fusion import fuse
from omni.hf_generation import OmniGenerationMixin
from omni.inputs import MediaItem, Modality
from omni.loading import as_device, as_dtype
from omni.loss import next_token_loss
from omni.memory import check_memory
from omni.projector import Projector
from omni.quantization import QuantizationConfig, quantize_modules
from omni.tensors import media_from_tensors
from omni.trained_reducers import TrainedReducers
from token_reduction import Reducer, TokenLayout, build


class OmniModel(PreTrainedModel, TrainedReducers, OmniGenerationMixin):
    """Audio, image, video and text in, scores over text tokens out.

    1. Encode every medium: tower, fixed reduction, projector, chosen reduction (`omni.encoding`).
    2. Lay the prompt for the counts that are left and fill the placeholders (`omni.fusion`).
    3. Run the decoder over the sequence.

    Attribute and parameter names are those of transformers' ``NemotronH_Omni_Reasoning_V3``.

    Args:
        config: An ``OmniConfig``. ``text_config.model_type`` decides the decoder: ``nemotron_h``
            builds our hybrid backbone, anything else transformers' ``AutoModelForCausalLM``.
    """

    config_class = OmniConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["RadioTower", "ParakeetTower", "HybridBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache"]
    _is_stateful = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: OmniConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        if vision.model_type != "radio":
            raise ConfigError(
                f"vision_config is of type {vision.model_type!r}; expected 'radio', the only "
                "vision tower there is."
            )
        self.is_hybrid = text.model_type == "nemotron_h"
        self.language_model = (
            HybridForCausalLM(text) if self.is_hybrid else AutoModelForCausalLM.from_config(text)
        )
        self.vision_model = RadioTower(vision)
        self.vision_model.make_preprocessor_external()
        self.multi_modal_projector = Projector(
            input_size=config.projector_input_size,
            hidden_size=config.projector_hidden_size,
            output_size=text.hidden_size,
        )
        audio = config.audio_config
        self.audio_tower = None if audio is None else ParakeetTower(audio)
        self.embed_audio = None
        if audio is not None:
            self.embed_audio = Projector(
                input_size=audio.hidden_size,
                hidden_size=audio.projection_hidden_size,
                output_size=text.hidden_size,
                bias=audio.projection_bias,
            )
        self.pixel_shuffle = build(f"pixel_shuffle({config.downsample_ratio})")
        self.tubelet = build(f"tubelet({config.tubelet_frames})")
        self.post_init()
        self.hold_trained_reducers(config)
        use_fast_products(self)
        if choices := QuantizationConfig.of(config):
            quantize_modules(self, choices)

    # ---------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        check_free_memory: bool = True,
    ) -> "OmniModel":
        """Load our own saves, transformers' saves, or the released layout.

        Args:
            path_or_id: A directory, or a hub id (downloaded unless offline settings forbid it).
            dtype: Number format of the weights, ``"auto"`` as stored; None is float32 on a CPU and
                bfloat16 elsewhere.
            device: Where to put the whole model; None is the CPU.
            device_map: accelerate's placement, such as ``"auto"``; not together with ``device``.
            revision: Branch, tag or commit of a hub id.
            local_files_only: Never touch the network.
            check_free_memory: Refuse a model that does not fit instead of swapping.

        Returns:
            The model in eval mode.

        Raises:
            CheckpointError: Files missing, not safetensors, or tensors that do not match.
            RequestError: The device is none of this machine, or `device_map` is given too.
            NotEnoughMemoryError: The weights do not fit; the message has both numbers.
        """
        if device is not None and device_map is not None:
            raise RequestError(
                f"device={device!r} and device_map={device_map!r} both place the model; give one."
            )
        directory = resolve_checkpoint(
            path_or_id, revision=revision, local_files_only=local_files_only
        )
        config = read_config(directory)
        target = as_device(device)
        if dtype is None:
            dtype = torch.float32 if target.type == "cpu" and not device_map else torch.bfloat16
        dtype = as_dtype(dtype)
        if check_free_memory and device_map is None:
            check_memory(directory, dtype=dtype, device=target)
        with torch.device("meta"):
            model = cls(config)
        place = {"device": target} if device_map is None else {"device_map": device_map}
        materialise(model, directory, dtype=dtype, **place)
        lay_columns(model)
        model.eval()
        return model

    def save_pretrained(
        self, directory: str | Path, *, max_shard_size: str | int = "5GB", **_: Any
    ) -> None:
        """Write config and weights in the released layout.

        Args:
            directory: Made if missing.
            max_shard_size: Largest file, such as ``"5GB"``.
        """
        save_checkpoint(self, Path(directory), max_shard_size=max_shard_size)

    # ---------------------------------------------------------------- media

    def structural_reducers(self, modality: Modality) -> list[Reducer]:
        """Reductions that the weights are made for, in order."""
        return {
            "image": [self.pixel_shuffle],
            "video": [self.tubelet, self.pixel_shuffle],
            "audio": [],
        }[modality]

    def encode_tubelets(
        self,
        tubelets: Float[Tensor, "patches values"],
        grid: tuple[int, int],
        merging: TokenMerging | None = None,
    ) -> Float[Tensor, "patches hidden"]:
        """Run the vision tower over tubelets of one grid; without a video embedder, over frames."""
        if self.config.tubelet_frames > 1:
            return self.vision_model.encode_video(tubelets, grid, merging)
        steps = len(tubelets) // (grid[0] * grid[1])
        return self.vision_model.encode_images(tubelets, torch.tensor([grid] * steps), merging)

    def project_vision(
        self,
        hidden_states: Float[Tensor, "patches hidden"],
        modality: Modality,
        grid: tuple[int, int, int],
    ) -> Float[Tensor, "tokens decoder"]:
        """Shuffle the patches of a grid to fewer, wider tokens and project them."""
        layout = TokenLayout.full(modality, grid)
        shuffled, _ = self.pixel_shuffle(hidden_states, layout)
        return self.multi_modal_projector(shuffled)

    def encode(
        self, media: list[MediaItem], times: StageTimes | None = None
    ) -> list[tuple[Tensor, TokenLayout]]:
        """Embeddings ``(tokens, hidden)`` and layout of every item; see `omni.encoding`.

        Raises:
            RequestError: Audio for a model without an audio tower.
        """
        if self.audio_tower is None and any(item.modality == "audio" for item in media):
            raise RequestError(
                "The request has audio but this checkpoint has no audio tower (no audio_config). "
                "Leave the recording out or load an omni checkpoint."
            )
        return encode_media(self, media, times)

    def embed(
        self,
        input_ids: Int[Tensor, "batch seq"],
        media: list[MediaItem],
        attention_mask: Tensor | None = None,
        times: StageTimes | None = None,
    ) -> tuple[Float[Tensor, "batch seq hidden"], Int[Tensor, "batch seq"], list[TokenLayout]]:
        """Prompt embeddings with media in place, the ids as laid, and each item's layout."""
        encoded = self.encode(media, times)
        embeddings, ids = self.place(input_ids, media, encoded, attention_mask)
        return embeddings, ids, [layout for _, layout in encoded]

    def place(
        self,
        input_ids: Int[Tensor, "batch seq"],
        media: Sequence[MediaItem],
        encoded: Sequence[tuple[Tensor, TokenLayout]],
        attention_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "batch seq hidden"], Int[Tensor, "batch seq"]]:
        """Prompt embeddings with encoded media in place, and the ids as laid; see `omni.fusion`.

        Of an attention mask that covers past tokens too, the end is that of these.
        """
        own = None
        if attention_mask is not None:
            own = attention_mask[:, attention_mask.shape[1] - input_ids.shape[1] :].bool()
        embeddings = self.get_input_embeddings()
        return fuse(input_ids, media, encoded, embeddings, self.placeholder_ids, own)

    def new_cache(self, capacity: int) -> HybridCache | None:
        """An empty cache with room for ``capacity`` positions; None where transformers makes it."""
        return self.language_model.new_cache(capacity) if self.is_hybrid else None

    def compile_step(self, *, is_wanted: bool = True) -> bool:
        """Decode by native steps from now on, or not; without this call they are used if possible.

        Args:
            is_wanted: False leaves all steps to PyTorch.

        Returns:
            Whether steps are native. If they cannot be, a warning has said why, and the model
            decodes by PyTorch.
        """
        if self.is_hybrid:
            return bool(self.language_model.compile_step(is_wanted=is_wanted))
        if not is_wanted:
            return False
        kind = self.config.text_config.model_type
        warnings.warn(
            f"Decoding is not compiled: the decoder is {kind!r} of transformers, and only the "
            "hybrid decoder (nemotron_h) can be.",
            stacklevel=2,
        )
        return False

    @property
    def placeholder_ids(self) -> list[int]:
        """Token ids that stand for media; generation never emits them."""
        ids = (self.config.image_token_id, self.config.audio_token_id)
        return [token_id for token_id in ids if token_id is not None]

    # ---------------------------------------------------------------- forward

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        media: list[MediaItem] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Score the next token at every position.

        Args:
            input_ids: Prompt ids with placeholders.
            attention_mask: True (or 1) where a token is real; padding may be left or right. With
                a cache it covers past and new tokens.
            media: Items with their blocks (``OmniInputs.media``).
            labels: Targets, -100 ignored; shifted here. Their loss is the mean over all targets.
            segment_ids: Packed samples of a row; states, windows and attention end at a boundary.
            inputs_embeds: Decoder embeddings instead of ``input_ids``; then media must be in them.
            cache: Cache of earlier tokens.
            use_cache: Return a cache.
            logits_to_keep: Score only the last n positions; 0 scores all.
            output_hidden_states: Also return the decoder's states.
            num_items_in_batch: Divide the summed loss by this instead of the number of targets.
            pixel_values: As transformers; see `omni.tensors`.
            image_grid_hw: As transformers.
            pixel_values_videos: As transformers.
            input_features: As transformers.
            input_features_mask: As transformers.
            ignored: ``position_ids`` and the like, which this decoder has no use for.

        Returns:
            Logits ``(batch, seq, vocab)``, the loss if labels came, and the cache if asked for.

        Raises:
            RequestError: Neither ids nor embeddings, or media beside embeddings.
            AlignmentError: Placeholders and features disagree.
        """
        self._refuse_unknown(ignored)
        tensors = {
            "pixel_values": pixel_values,
            "image_grid_hw": image_grid_hw,
            "pixel_values_videos": pixel_values_videos,
            "input_features": input_features,
            "input_features_mask": input_features_mask,
        }
        has_tensors = any(value is not None for value in tensors.values())
        if inputs_embeds is not None and (media or has_tensors):
            raise RequestError(
                "inputs_embeds came together with media. Media are placed by input_ids: pass "
                "input_ids instead, or fuse first with model.embed(...)."
            )
        if inputs_embeds is None:
            if input_ids is None:
                raise RequestError("forward needs input_ids or inputs_embeds; found neither.")
            if has_tensors:
                media = list(media or []) + media_from_tensors(self.config, input_ids, **tensors)
            if media or cache is None:
                inputs_embeds, *_ = self.embed(input_ids, media or [], attention_mask)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        return self._decode(
            inputs_embeds,
            attention_mask=attention_mask,
            labels=labels,
            segment_ids=segment_ids,
            cache=cache,
            use_cache=bool(use_cache),
            logits_to_keep=logits_to_keep,
            output_hidden_states=output_hidden_states,
            num_items_in_batch=num_items_in_batch,
        )

    def _decode(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        segment_ids: Tensor | None,
        cache: Any,
        use_cache: bool,
        logits_to_keep: int,
        output_hidden_states: bool,
        num_items_in_batch: Tensor | int | None,
    ) -> CausalLMOutputWithPast:
        """Run the decoder and, with labels, the loss."""
        if self.is_hybrid:
            if use_cache and cache is None:
                cache = self.language_model.new_cache()
            out = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=None if attention_mask is None else attention_mask.bool(),
                segment_ids=segment_ids,
                cache=cache,
                logits_to_keep=logits_to_keep,
                output_hidden_states=output_hidden_states,
            )
            cache = out.cache
        else:
            if segment_ids is not None:
                raise RequestError(
                    f"Packing (segment_ids) needs the hybrid backbone; this model's decoder is "
                    f"{self.config.text_config.model_type!r}. Pad the samples instead."
                )
            out = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=None if attention_mask is None else attention_mask.long(),
                cache=cache,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                output_hidden_states=output_hidden_states,
            )
            cache = out.cache
        loss = None
        if labels is not None:
            loss = next_token_loss(out.logits, labels, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=out.logits,
            cache=cache if use_cache or cache is not None else None,
            hidden_states=out.hidden_states,
        )

    def _refuse_unknown(self, arguments: dict[str, Any]) -> None:
        """Arguments of other models that change nothing here are let through; others are not."""
        harmless = {"position_ids", "cache_position", "return_dict", "output_attentions"}
        unknown = sorted(set(arguments) - harmless)
        if unknown:
            raise TypeError(f"OmniModel.forward has no argument {', '.join(map(repr, unknown))}.")

    # ---------------------------------------------------------------- transformers' expectations

    def train(self, mode: bool = True) -> "OmniModel":
        """Set training mode; towers without trainable parameters stay deterministic (eval).

        Batch normalisation keeps its statistics in any mode: a batch here is one clip or a few,
        and a sample's loss must not depend on what runs beside it.
        """
        super().train(mode)
        for tower in (self.vision_model, self.audio_tower):
            if tower is not None and not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's output layer."""
        return self.language_model.lm_head
