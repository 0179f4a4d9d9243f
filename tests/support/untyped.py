"""Options as a user makes them: without the type checker that tests run under."""

from typing import Any, TypeVar

T = TypeVar("T")


def untyped(kind: type[T], **fields: Any) -> T:
    """An instance of a frozen dataclass, checked by itself alone.

    Args:
        kind: The dataclass.
        fields: Those that are not at their default.
    """
    made: Any = kind()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    checked: T = made
    return checked
