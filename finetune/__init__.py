"""Adapting a model to data, and the recipe that trained the embedded checkpoint."""
