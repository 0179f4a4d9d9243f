"""Which weights of a model are quantised, and how `config.json` says so.

in int8 or int4       routed and shared experts, MLPs, latent projections
in int8               projections of Mamba and attention
in int8 or 16 bits    the language head (`head_bits`), unless it is tied to the embeddings
in int8 if asked for  linear layers of towers and projectors (`towers`)
never                 router, embeddings, norms, convolutions, A, D, step biases
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni.backbone.moe import Experts
from omni.errors import CheckpointError, RequestError
from omni.quantization.formats import GROUP_SIZES
from omni.quantization.modules import (
    QuantizedExperts,
    QuantizedLinear,
    QuantizedWeight,
    choose_format,
)

METHOD = "omni"
"""The `quant_method` of our files."""
VERSION = 1
MIXING = ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")
"""Projections of Mamba and attention: a few per cent of the weights, most of the loss in int4."""
TWO_STEPS = "out_proj"
"""A few large activations enter these, whose rounding to int8 costs most; see `linear_int8`."""
TOWERS = ("vision_model.", "audio_tower.", "multi_modal_projector.", "embed_audio.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """The choices of one quantised checkpoint."""

    bits: int
    """8 or 4, of the decoder's weights."""
    group_size: int = 64
    """Weights that share an int4 multiplier; fewer are more exact and larger."""
    head_bits: int = 8
    """8, or 16 to leave the language head as it is."""
    towers: bool = False
    """Whether towers and projectors are int8 too: half their size, see docs/quantization.md."""

    def __post_init__(self) -> None:
        known = {"bits": (8, 4), "group_size": GROUP_SIZES, "head_bits": (8, 16)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise RequestError(
                    f"{name} is {getattr(self, name)}; expected one of "
                    f"{', '.join(map(str, values))}."
                )

    @classmethod
    def read(cls, fields: Mapping[str, Any] | None) -> "QuantizationConfig | None":
        """Read `quantization_config` of a `config.json`; None without one.

        Raises:
            CheckpointError: It is of another method or version.
        """
        if not fields:
            return None
        method, version = fields.get("quant_method", "unnamed"), fields.get("version")
        if method != METHOD or version != VERSION:
            raise CheckpointError(
                f"quantization_config has method {method}, version {version}; read are "
                f"{METHOD!r}, version {VERSION}, as `omni quantize` writes. Quantise the BF16 "
                "release of the model with it."
            )
        own = {k: v for k, v in fields.items() if k not in ("quant_method", "version")}
        try:
            return cls(**own)
        except TypeError as error:
            raise CheckpointError(f"quantization_config: {error}; quantise again.") from error

    @classmethod
    def of(cls, config: Any) -> "QuantizationConfig | None":
        """The choices that the config of a model states; None if it is not quantised."""
        return cls.read(getattr(config, "quantization_config", None))

    def to_dict(self) -> dict[str, Any]:
        """The fields that `config.json` holds."""
        return {"quant_method": METHOD, "version": VERSION, **asdict(self)}

    def bits_of(self, name: str) -> int:
        """Bits of the linear layer or experts of this name; 16 leaves it as it is."""
        if name.endswith("lm_head"):
            return self.head_bits
        if name.startswith(TOWERS):
            return 8 if self.towers else 16
        return 8 if name.rpartition(".")[2] in MIXING else self.bits


class StoredEmbedding(nn.Module):
    """An embedding table in the 16 bits of its file; what is looked up gets the model's dtype."""

    table: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty_like(embedding.weight, requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """The table, by the name that `nn.Embedding` has for it."""
        return self.table

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        """Look ids up."""
        return nn.functional.embedding(ids, self.table).float()


def quantize_modules(
    model: nn.Module, choices: QuantizationConfig, *, prefix: str = ""
) -> dict[str, nn.Module]:
    """Put empty quantised layers where a model has float ones; names of parameters stay prefixes.

    Args:
        model: A decoder or an omni model, usually on the meta device.
        choices: What to quantise.
        prefix: Where `model` is in the whole model, such as `model.layers.3.`; names decide.

    Returns:
        The float layers that were replaced, by name without the prefix.
    """
    replaced: dict[str, nn.Module] = {}
    tied = bool(getattr(model, "all_tied_weights_keys", None))

    def visit(path: str, module: nn.Module) -> None:
        for leaf, child in list(module.named_children()):
            name = f"{path}{leaf}"
            is_tied = tied and leaf in ("lm_head", "embeddings")
            new = None if is_tied else _quantized(f"{prefix}{name}", child, choices)
            if new is None:
                visit(f"{name}.", child)
            else:
                replaced[name] = child
                setattr(module, leaf, new)

    visit("", model)
    return replaced


def _quantized(name: str, module: nn.Module, choices: QuantizationConfig) -> nn.Module | None:
    """The empty quantised layer for a module, or None to leave it."""
    bits = choices.bits_of(name)
    if isinstance(module, nn.Embedding) and name.endswith("embeddings") and bits < 16:
        with module.weight.device:
            return StoredEmbedding(module)
    if bits == 16:
        return None
    if isinstance(module, Experts):
        up, down = (
            choose_format(bits, weight.shape[2], choices.group_size)
            for weight in (module.up_proj, module.down_proj)
        )
        with module.up_proj.device:
            return QuantizedExperts(up, down, module)
    if isinstance(module, nn.Linear):
        with module.weight.device:
            form = choose_format(bits, module.in_features, choices.group_size)
            return QuantizedLinear(form, module, two_steps=name.endswith(TWO_STEPS))
    return None


def is_packed(model: nn.Module, name: str) -> bool:
    """Whether the tensor of this name belongs to a quantised weight or a table in 16 bits."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return isinstance(owner, QuantizedWeight | StoredEmbedding) and leaf != "bias"


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of a model is quantised."""
    return any(isinstance(module, QuantizedWeight) for module in model.modules())


@torch.no_grad()
def quantize_weights(
    model: nn.Module, choices: QuantizationConfig, *, prefix: str = ""
) -> nn.Module:
    """Quantise a model that is in memory, in place; files are made by `omni.quantize`."""
    for name, old in quantize_modules(model, choices, prefix=prefix).items():
        new = model.get_submodule(name)
        if isinstance(new, QuantizedLinear) and isinstance(old, nn.Linear):
            new.load(old.weight)
        elif isinstance(new, StoredEmbedding) and isinstance(old, nn.Embedding):
            new.table.copy_(old.weight)
        elif isinstance(new, QuantizedExperts):
            for proj in ("up_proj", "down_proj"):
                stack, weight = getattr(old, proj), getattr(new, proj)
                assert isinstance(weight, QuantizedWeight)
                for expert, matrix in enumerate(stack):
                    weight.load(matrix, expert)
    return model
