"""Names of tensors: in the released checkpoint and in memory, both directions.

The released layout stores each routed expert by itself and the vision tower's query, key
and value as one matrix; in memory experts are stacked and query, key and value apart:

    stored                                               in memory
    language_model.backbone.*                            language_model.model.*
    ...mixer.experts.{e}.up_proj.weight                  ...mixer.experts.up_proj, row e
    vision_model.radio_model.model.blocks.{b}.*          vision_model.encoder.layer.{b}.*
    ...blocks.{b}.attn.qkv.*                             ...{b}.attention.{q,k,v}_proj.*
    ...blocks.{b}.attn.proj.*                            ...{b}.attention.o_proj.*
    vision_model.radio_model.model.patch_generator.*     vision_model.embeddings.*
    mlp1.{0,1,3}.*                                       multi_modal_projector.*
    sound_encoder.encoder.*                              audio_tower.*
    sound_projection.*                                   embed_audio.*

Only names and shapes here; `omni/checkpoint.py` moves the bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HYBRID_RENAMES = (("language_model.model.", "language_model.backbone."),)

RADIO_RENAMES = (
    (
        "vision_model.embeddings.video_patch_projection.",
        "vision_model.radio_model.model.patch_generator.video_embedder.",
    ),
    (
        "vision_model.embeddings.patch_projection.",
        "vision_model.radio_model.model.patch_generator.embedder.",
    ),
    (
        "vision_model.embeddings.position_embedding",
        "vision_model.radio_model.model.patch_generator.pos_embed",
    ),
    (
        "vision_model.embeddings.cls_register_token",
        "vision_model.radio_model.model.patch_generator.cls_token.token",
    ),
    ("vision_model.encoder.layer.", "vision_model.radio_model.model.blocks."),
    ("vision_model.input_conditioner.", "vision_model.radio_model.input_conditioner."),
    ("vision_model.summary_idxs", "vision_model.radio_model.summary_idxs"),
)

COMMON_RENAMES = (
    ("multi_modal_projector.layer_norm.", "mlp1.0."),
    ("multi_modal_projector.linear_1.", "mlp1.1."),
    ("multi_modal_projector.linear_2.", "mlp1.3."),
    ("audio_tower.", "sound_encoder.encoder."),
    ("embed_audio.layer_norm.", "sound_projection.norm."),
    ("embed_audio.linear_1.", "sound_projection.linear1."),
    ("embed_audio.linear_2.", "sound_projection.linear2."),
)

# Stored by some exports and of no use in memory: normalisation and mel extraction happen
# before the model, and multi-token prediction heads are read only by models that have them.
IGNORED = re.compile(
    r"\.input_conditioner\.|\.feature_extractor\.|\.summary_idxs$|(^|\.)mtp\.|\.inv_freq$"
)
# Absent from released files: identity scales, and indices that the config states.
FILLED = re.compile(
    r"\.layer_scale[12]\.lambda1$|\.summary_idxs$|(^|\.)vision_final_layernorm\.(weight|bias)$"
)
# Routing decides by tiny differences, so these stay float32 whatever the model's dtype.
KEPT_FLOAT32 = re.compile(r"\.e_score_correction_bias$")

# Scales of quantised weights and tables in 16 bits, which lie in the file as they are used.
KEPT_AS_STORED = re.compile(r"\.(row_scale|group_scale|table)$")

_EXPERTS = re.compile(r"(.*\.experts)\.((?:up|down)_proj)$")
_RADIO_QKV = re.compile(r"(.*)\.attention\.([qkv])_proj\.(weight|bias)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a tensor in memory, and the stored tensor (or third of one) that holds it."""

    stored: str
    """Name in the released layout."""
    row: int | None = None
    """Index on the first dimension of the tensor in memory; None: all of it."""
    third: int | None = None
    """Which of three equal parts of the stored tensor's first dimension; None: all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLayout:
    """The mapping for one model; other decoders and vision towers keep their own names."""

    hybrid: bool = True
    """Whether the decoder is a `nemotron_h`."""
    radio: bool = True
    """Whether the vision tower is RADIO."""

    @classmethod
    def of(cls, config: Any) -> "WeightsLayout":
        """Choose by the `model_type` of a config's `text_config` and `vision_config`."""
        return cls(
            hybrid=config.text_config.model_type == "nemotron_h",
            radio=config.vision_config.model_type == "radio",
        )

    def pieces(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """List where the tensor `name` of this shape in memory is stored, in row order."""
        if self.hybrid and len(shape) == 3 and (match := _EXPERTS.match(name)):
            experts, proj = self.rename(match[1]), match[2]
            return tuple(
                Piece(stored=f"{experts}.{row}.{proj}.weight", row=row) for row in range(shape[0])
            )
        if self.radio and name.startswith("vision_model.") and (match := _RADIO_QKV.match(name)):
            stored = f"{self.rename(match[1])}.attn.qkv.{match[3]}"
            return (Piece(stored=stored, third="qkv".index(match[2])),)
        return (Piece(stored=self.rename(name)),)

    def rename(self, name: str) -> str:
        """Translate a name, or the beginning of one, from memory to the released layout."""
        renames = (
            (HYBRID_RENAMES if self.hybrid else ())
            + (RADIO_RENAMES if self.radio else ())
            + COMMON_RENAMES
        )
        for memory, stored in renames:
            if name.startswith(memory):
                name = stored + name.removeprefix(memory)
                break
        if self.radio and name.startswith("vision_model."):
            name = name.replace(".attention.o_proj.", ".attn.proj.")
        return name

    def stored(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[tuple[str, Piece]]]:
        """Invert `pieces`: for each stored tensor its parts, as (name in memory, piece).

        Args:
            shapes: Shape of each tensor in memory, by name.

        Returns:
            One part per stored tensor, or three in q, k, v order to be joined on dim 0.
        """
        parts: dict[str, list[tuple[str, Piece]]] = {}
        for name, shape in shapes.items():
            for piece in self.pieces(name, shape):
                parts.setdefault(piece.stored, []).append((name, piece))
        for joined in parts.values():
            joined.sort(key=lambda part: part[1].third or 0)
        return parts
