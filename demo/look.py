"""How the page looks: colours with enough contrast, light and dark, and no font from elsewhere."""

from pathlib import Path

import gradio as gr

from omni.panels import STYLE

CSS = f"{STYLE}\n{Path(__file__).with_name('style.css').read_text(encoding='utf-8')}"


def theme() -> gr.themes.Base:
    """System fonts only; Gradio's own greys and its orange are too pale to be read by many."""
    soft = {"light": "*neutral_600", "dark": "*neutral_300"}
    return gr.themes.Default(
        primary_hue=gr.themes.colors.cyan,
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(
        body_text_color_subdued=soft["light"],
        body_text_color_subdued_dark=soft["dark"],
        block_info_text_color=soft["light"],
        block_info_text_color_dark=soft["dark"],
        block_label_text_color=soft["light"],
        block_label_text_color_dark=soft["dark"],
        block_title_text_color=soft["light"],
        block_title_text_color_dark=soft["dark"],
        input_placeholder_color=soft["light"],
        input_placeholder_color_dark=soft["dark"],
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
