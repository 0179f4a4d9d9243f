"""What transformers' `generate`, beams and sampling included, asks of a model that takes media."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from omni.config import OmniConfig
from omni.tensors import media_from_tensors

# Media arguments of transformers' model; see `omni.tensors`.
MEDIA_TENSORS = (
    "pixel_values",
    "image_grid_hw",
    "pixel_values_videos",
    "input_features",
    "input_features_mask",
)


class OmniGenerationMixin(GenerationMixin):
    """The part of `OmniModel` that transformers' `generate` calls between two forward passes."""

    config: OmniConfig

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the hybrid cache is made in forward

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams and samples, and with each row its media."""
        if expand_size > 1 and input_ids is not None:
            tensors = {name: kwargs.pop(name, None) for name in MEDIA_TENSORS}
            media = list(kwargs.pop("media", None) or [])
            if any(value is not None for value in tensors.values()):
                media += media_from_tensors(self.config, input_ids, **tensors)
            kwargs["media"] = [
                replace(item, row=item.row * expand_size + copy)
                for item in media
                for copy in range(expand_size)
            ]
        return super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, cache: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """First call: the whole prompt with its media. Later calls: what the cache has not read."""
        kept = {"attention_mask": kwargs.get("attention_mask"), "use_cache": True}
        past = 0 if cache is None else cache.get_seq_length()
        if past:
            return {"input_ids": input_ids[:, past:], "cache": cache, **kept}
        names = ("media", "segment_ids", *MEDIA_TENSORS)
        media = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return {"input_ids": input_ids, "logits_to_keep": 1, **kept, **media}
