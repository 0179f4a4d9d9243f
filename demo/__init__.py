"""The web demo: draws and wires; alone imports gradio. What it shows is computed in `omni`."""
