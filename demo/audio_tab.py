"""The audio workspace: waveform and spectrogram of a recording, with what the model kept of it."""

import gradio as gr

from demo.models import Models
from demo.samples import WORD, WORDS
from demo.visitors import Visitors
from demo.workspace import Workspace, draw_workspace


def draw_audio_tab(models: Models, visitors: Visitors) -> None:
    """Draw it into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    workspace = Workspace(
        name="audio",
        modalities=["audio"],
        samples=[WORD, WORDS],
        draw_medium=_draw_medium,
        stretch_s=1,
    )
    draw_workspace(workspace, models, visitors)


def _draw_medium() -> gr.Audio:
    return gr.Audio(label="Recording", type="filepath", elem_id="audio-medium")
