"""The web demo; it may import `omni` and alone imports gradio. Not written yet."""
