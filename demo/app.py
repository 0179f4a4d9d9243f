"""The page: one tab a file, drawn in order."""

from collections.abc import Callable

import gradio as gr

from demo.chat_tab import draw_chat_tab
from demo.model_panel import draw_model_panel
from demo.models import Models
from demo.visitors import Visitors

TITLE = "Omni demo"
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
footer { opacity: 0.7; }
"""
HEAD = '<meta name="referrer" content="no-referrer">'


def build_app(models: Models, visitors: Visitors, *, cache_seconds: int = 86_400) -> gr.Blocks:
    """Draw the page and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab; freed when it closes.
        cache_seconds: Age at which files that gradio keeps are removed, in any case.

    Returns:
        Gradio's blocks, to launch.
    """
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(600, cache_seconds), fill_width=True
    ) as app:
        gr.Markdown(f"# {TITLE}", elem_id="heading")
        draw_model_panel(models, visitors)
        with gr.Tab("Chat", id="chat"):
            draw_chat_tab(models, visitors)
        app.unload(_forget(visitors))
    return app


def theme() -> gr.themes.Base:
    """System fonts only, so that the page asks no other server for one."""
    fonts = ("system-ui", "sans-serif")
    return gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace"))


def _forget(visitors: Visitors) -> Callable[[gr.Request], None]:
    def forget(request: gr.Request) -> None:
        visitors.forget(request.session_hash)

    return forget
