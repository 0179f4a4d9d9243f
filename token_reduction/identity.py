"""The reducer that changes nothing: the baseline without reduction."""

from token_reduction.base import Chain


class Identity(Chain):
    """Keeps every token: a chain without members, so it fits at any stage."""

    def __init__(self) -> None:
        super().__init__()
