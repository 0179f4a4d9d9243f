"""Controls for how many tokens a request takes, and the plan that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from omni.config import OmniConfig
from omni.inputs import Modality
from omni.reduction import reducers_with_rate

MODELS_OWN = "the model's own"
MAX_BUDGET = 4096  # tokens; the largest that the slider offers
MAX_IMAGE_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenControls:
    """The controls of one request.

    Attributes:
        by_name: Component of each setting, in the order in which their values are given.
    """

    by_name: Mapping[str, gr.components.Component]

    @property
    def components(self) -> list[gr.components.Component]:
        """For the inputs of an event."""
        return list(self.by_name.values())

    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        """Options of `omni.Assistant.chat` from what the components hold.

        Args:
            values: One a component, in order.
        """
        return read_options(dict(zip(self.by_name, values, strict=True)))


def draw_token_controls(
    modalities: Sequence[Modality],
    config: OmniConfig,
    *,
    name: str,
    reducers: Mapping[str, str] | None = None,
) -> TokenControls:
    """Draw the controls that bear on some modalities: one budget, and below it every setting.

    Args:
        modalities: Which media the request may have.
        config: The model's config: which reducers it can run.
        name: Starts the ids of the elements.
        reducers: Chosen at first for a modality; without, the model's own.
    """
    found: dict[str, gr.components.Component] = {
        "max_tokens": gr.Slider(
            0,
            MAX_BUDGET,
            value=0,
            step=16,
            label="Budget: tokens of prompt and answer",
            info="0 is no budget. Below what is needed, rates, frames and sizes are lowered.",
            elem_id=f"{name}-budget",
        )
    }
    with gr.Accordion("Resolution, frames, reducers", open=False, elem_id=f"{name}-more"):
        found["max_new_tokens"] = gr.Slider(8, 512, value=64, step=8, label="Longest answer")
        if "image" in modalities:
            found["dpi"] = gr.Slider(
                0, 300, value=0, step=12, label="Dots per inch of pages", info=_own("0")
            )
            found["image_tokens"] = gr.Slider(
                0,
                MAX_IMAGE_TOKENS,
                value=0,
                step=8,
                label="Resolution: most tokens of a picture or page",
                info=f"Larger ones are made smaller. {_own('0')}",
                elem_id=f"{name}-image-tokens",
            )
        if "video" in modalities:
            found["fps"] = gr.Slider(
                0, 16, value=0, step=0.5, label="Frames a second", info=_own("0")
            )
            found["num_frames"] = gr.Slider(
                0, 256, value=0, step=2, label="Most frames", info=_own("0")
            )
            found["audio_in_video"] = gr.Checkbox(label="Listen to the sound of videos")
        for modality in modalities:
            with gr.Row():
                found[f"{modality}_reducer"] = gr.Dropdown(
                    [MODELS_OWN, *reducers_with_rate(modality, config)],
                    value=(reducers or {}).get(modality, MODELS_OWN),
                    label=f"Reducer of {modality} tokens",
                    elem_id=f"{name}-{modality}-reducer",
                )
                found[f"{modality}_rate"] = gr.Slider(
                    0,
                    0.95,
                    value=0.5,
                    step=0.05,
                    label=f"Rate of the {modality} reducer",
                    info="Share of the tokens that is removed.",
                    elem_id=f"{name}-{modality}-rate",
                )
    return TokenControls(by_name=found)


def read_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `omni.Assistant.chat`; what stands at 0 or at the model's own is left out.

    Args:
        values: By the names of `TokenControls`.
    """
    numbers = ("max_tokens", "max_new_tokens", "dpi", "image_tokens", "num_frames")
    options: dict[str, Any] = {name: int(values[name]) for name in numbers if values.get(name)}
    options |= {name: values[name] for name in ("fps", "audio_in_video") if values.get(name)}
    reduction = {
        modality: f"{values[f'{modality}_reducer']}({values[f'{modality}_rate']:g})"
        for modality in ("image", "video", "audio")
        if values.get(f"{modality}_reducer", MODELS_OWN) != MODELS_OWN
    }
    return options | ({"reduction": reduction} if reduction else {})


def _own(value: str) -> str:
    return f"{value} is {MODELS_OWN}."
