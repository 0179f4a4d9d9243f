"""The document workspace: pages as the model gets them, and what it used of each."""

import gradio as gr

from demo.models import Models
from demo.samples import DIGIT, PAGES_SHAPE, PAGES_TEXT, TICKET
from demo.visitors import Visitors
from demo.workspace import Workspace, draw_workspace

FILE_TYPES = [".pdf", ".tif", ".tiff", "image"]


def draw_document_tab(models: Models, visitors: Visitors) -> None:
    """Draw it into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    workspace = Workspace(
        name="document",
        modalities=["image"],
        samples=[TICKET, PAGES_TEXT, PAGES_SHAPE, DIGIT],
        draw_medium=_draw_medium,
        has_pages=True,
    )
    draw_workspace(workspace, models, visitors)


def _draw_medium() -> gr.File:
    return gr.File(
        label="Document or picture", file_types=FILE_TYPES, height=140, elem_id="document-medium"
    )
