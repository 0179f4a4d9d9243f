"""What a fine-tuning run trains: presets by name, joined with ``+``.

A preset names LoRA targets, or modules that are trained whole. LoRA targets are full paths inside
the language model: a leaf name such as ``q_proj`` would also hit both towers, and the stacked
weights of the routed experts are parameters, which no list of modules reaches.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from omni.errors import RequestError

_LAYER = r"language_model\.model\.layers\.\d+\.mixer"
TOWERS = ("vision_model", "audio_tower")
PROJECTORS = ("multi_modal_projector", "embed_audio")
ROUTER = ".mixer.gate."


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is trained under one name.

    Attributes:
        description: For people.
        lora_modules: Regular expressions over full names of linear modules.
        lora_parameters: The same over full names of stacked expert parameters.
        whole: Names of modules of the model whose parameters are all trained.
    """

    description: str
    lora_modules: tuple[str, ...] = ()
    lora_parameters: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


_ATTENTION = rf"{_LAYER}\.[qkvo]_proj"
_MAMBA = rf"{_LAYER}\.(in|out)_proj"
_SHARED = rf"{_LAYER}\.shared_experts\.(up|down)_proj"
_MLP = rf"{_LAYER}\.(up|down)_proj"  # layers of a plain MLP

PRESETS: dict[str, Preset] = {
    "lora-attention": Preset(
        description="adapters on q, k, v and o of the decoder's attention layers",
        lora_modules=(_ATTENTION,),
    ),
    "lora-mamba": Preset(
        description="adapters on the two projections of the Mamba-2 layers",
        lora_modules=(_MAMBA,),
    ),
    "lora-shared-experts": Preset(
        description="adapters on the shared experts and plain MLPs",
        lora_modules=(_SHARED, _MLP),
    ),
    "lora-routed-experts": Preset(
        description="adapters on every routed expert; many parameters",
        lora_parameters=(rf"{_LAYER}\.experts\.(up|down)_proj",),
    ),
    "lora-all": Preset(
        description="attention, Mamba-2, shared experts and plain MLPs: the official targets",
        lora_modules=(_ATTENTION, _MAMBA, _SHARED, _MLP),
    ),
    "projectors": Preset(
        description="the projectors between towers and decoder, whole", whole=PROJECTORS
    ),
    "full": Preset(
        description="decoder and projectors, whole; towers stay as they are",
        whole=("language_model", *PROJECTORS),
    ),
    "towers": Preset(description="both towers, whole", whole=TOWERS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What of one model is trained.

    Attributes:
        preset: As asked for.
        lora_modules: Full names of the linear modules that get an adapter.
        lora_parameters: Full names of the stacked parameters that get one.
        whole: Full names of the parameters that are trained themselves.
        pattern: Regular expression that matches `lora_modules` and nothing else.
    """

    preset: str
    lora_modules: tuple[str, ...] = ()
    lora_parameters: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def uses_lora(self) -> bool:
        """Whether anything gets an adapter."""
        return bool(self.lora_modules or self.lora_parameters)


def find_targets(model: nn.Module, preset: str, *, train_router: bool = False) -> Targets:
    """Find what a preset means for a model.

    Args:
        model: An ``OmniModel``; its weights may be on the meta device.
        preset: A name of `PRESETS`, or several joined with ``+``.
        train_router: Whether whole training also changes the experts' routers.

    Returns:
        Names, in the model's order.

    Raises:
        RequestError: An unknown name, or one that matches nothing in this model.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    parameters = dict(model.named_parameters())
    lora_modules: set[str] = set()
    lora_parameters: set[str] = set()
    whole: set[str] = set()
    patterns: list[str] = []
    for name in preset.split("+"):
        chosen = _preset(name.strip())
        found = [
            _matching(chosen.lora_modules, modules),
            _matching(chosen.lora_parameters, parameters),
            {p for p in parameters for module in chosen.whole if p.startswith(f"{module}.")},
        ]
        if not any(found):
            kinds = getattr(getattr(model, "config", None), "text_config", None)
            pattern = getattr(kinds, "hybrid_override_pattern", "unknown")
            raise RequestError(
                f"Preset {name.strip()!r} ({chosen.description}) matches nothing in this model, "
                f"whose decoder layers are {pattern!r} (M Mamba-2, * attention, E experts, - MLP). "
                "Choose another preset."
            )
        lora_modules |= found[0]
        patterns += [p for p in chosen.lora_modules if _matching((p,), modules)]
        lora_parameters |= found[1]
        whole |= found[2]
    if not train_router:
        whole = {name for name in whole if ROUTER not in name}
    covered = {n for n in (*(f"{m}.weight" for m in lora_modules), *lora_parameters) if n in whole}
    if covered:
        raise RequestError(
            f"Preset {preset!r} trains {sorted(covered)[0]} (and {len(covered) - 1} more) both "
            "whole and through an adapter. Choose one of the two."
        )
    return Targets(
        preset=preset,
        lora_modules=tuple(name for name in modules if name in lora_modules),
        lora_parameters=tuple(name for name in parameters if name in lora_parameters),
        whole=tuple(name for name in parameters if name in whole),
        pattern="|".join(dict.fromkeys(patterns)),
    )


def lora_config(targets: Targets, *, rank: int, alpha: int, dropout: float) -> Any:
    """PEFT's configuration for targets with adapters.

    Names are given in full, so nothing else can match. `modules_to_save` holds the modules that
    are trained whole beside the adapters.

    Args:
        targets: From `find_targets`.
        rank: Inner width of each adapter.
        alpha: Its output is scaled by ``alpha / rank``.
        dropout: Of each adapter's input; adapters of expert parameters have none.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0 if targets.lora_parameters else dropout,
        target_modules=targets.pattern or [],
        target_parameters=list(targets.lora_parameters) or None,
        modules_to_save=sorted({name.split(".")[0] for name in targets.whole}) or None,
    )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        known = "\n".join(f"  {key}: {value.description}" for key, value in PRESETS.items())
        raise RequestError(
            f"Unknown preset {name!r}; expected one of these, or several joined with '+':\n{known}"
        )
    return PRESETS[name]


def _matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    compiled = [re.compile(pattern) for pattern in patterns]
    return {name for name in names if any(p.fullmatch(name) for p in compiled)}
