"""The video workspace: a player beside the frames that the model gets, and what it kept."""

import gradio as gr

from demo.models import Models
from demo.samples import CLIP, COLOUR
from demo.visitors import Visitors
from demo.workspace import Workspace, draw_workspace


def draw_video_tab(models: Models, visitors: Visitors) -> None:
    """Draw it into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    workspace = Workspace(
        name="video",
        modalities=["video", "audio"],
        samples=[CLIP, COLOUR],
        draw_medium=_draw_medium,
        stretch_s=1,
    )
    draw_workspace(workspace, models, visitors)


def _draw_medium() -> gr.Video:
    return gr.Video(label="Video", elem_id="video-medium")
