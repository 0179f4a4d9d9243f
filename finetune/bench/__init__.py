"""Measures what token reduction costs and what it saves: `omni bench reduce`."""
