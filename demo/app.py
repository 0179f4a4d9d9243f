"""The page: one tab a file, drawn in order."""

from collections.abc import Callable

import gradio as gr

from demo.audio_tab import draw_audio_tab
from demo.chat_tab import draw_chat_tab
from demo.compare_tab import draw_compare_tab
from demo.document_tab import draw_document_tab
from demo.housekeeping import Housekeeper
from demo.model_panel import draw_model_panel
from demo.models import Models
from demo.video_tab import draw_video_tab
from demo.visitors import Visitors

TITLE = "Omni demo"
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
        with gr.Tab("Document", id="document"):
            draw_document_tab(models, visitors)
        with gr.Tab("Video", id="video"):
            draw_video_tab(models, visitors)
        with gr.Tab("Audio", id="audio"):
            draw_audio_tab(models, visitors)
        with gr.Tab("Compare", id="compare"):
            draw_compare_tab(models, visitors)
        app.unload(_forget(visitors))
    visitors.on_forget = Housekeeper(app).note
    models.on_unload = visitors.leave
    return app


def _forget(visitors: Visitors) -> Callable[[gr.Request], None]:
    def forget(request: gr.Request) -> None:
        visitors.forget(request.session_hash)

    return forget
