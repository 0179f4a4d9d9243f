"""Which model answers, what its limits are, and how to choose another."""

from collections.abc import Callable

import gradio as gr

from demo.models import NO_ADAPTER, Choice, Loaded, Models
from demo.visitors import Visitors
from omni.errors import OmniError


def draw_model_panel(models: Models, visitors: Visitors) -> None:
    """Draw the panel into the current place and wire it.

    Args:
        models: What may answer.
        visitors: Each has a choice of their own.
    """
    loaded = models.get()
    heading = gr.Markdown(headline(loaded), elem_id="model-headline")
    with gr.Accordion("About this model: what it can do, and what not", open=False):
        limits = gr.Markdown(loaded.limits, elem_id="model-limits")
    with gr.Accordion("Choose a model", open=False, visible=has_choice(models)):
        with gr.Row(equal_height=True):
            model = gr.Dropdown(
                models.model_names,
                value=models.default.model,
                label="Model",
                info=_info(models),
                allow_custom_value=models.allow_network,
            )
            adapter = gr.Dropdown(
                models.adapter_names, value=models.default.adapter, label="Adapter"
            )
            button = gr.Button("Load", variant="primary", min_width=120)
        status = gr.Markdown("", elem_id="model-status")

    button.click(
        _load(models, visitors),
        [model, adapter],
        [heading, limits, status],
        api_name="load_model",
        concurrency_id="model",
        show_progress="full",
        show_progress_on=[status],
    )


def headline(loaded: Loaded) -> str:
    """Which model answers, in one paragraph."""
    return f"**{loaded.title}** — {loaded.summary}" if loaded.summary else f"**{loaded.title}**"


def has_choice(models: Models) -> bool:
    """Whether there is anything to choose."""
    several = len(models.model_names) > 1 or len(models.adapter_names) > 1
    return several or models.allow_network


def _info(models: Models) -> str:
    if models.allow_network:
        return "One of the list, or a hub id such as owner/name."
    return "Those that this demo was started with."


def _load(models: Models, visitors: Visitors) -> Callable[..., tuple[str, str, str]]:
    def load(
        model: str,
        adapter: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio hands one in
    ) -> tuple[str, str, str]:
        """Load a model for this visitor; the conversation stays."""
        visitor = visitors.of(request.session_hash)
        choice = Choice(model=model, adapter=adapter or NO_ADAPTER)
        progress(0.1, desc=f"Loading {model}")
        try:
            loaded = models.get(choice)
        except OmniError as error:
            now = models.get(visitor.choice)
            message = f"**Not loaded.** {error} {now.assistant.name} still answers."
            return headline(now), now.limits, message
        visitor.choice = choice
        return headline(loaded), loaded.limits, f"{loaded.assistant.name} answers from now on."

    return load
