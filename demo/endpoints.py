"""Names for the parameters of endpoints whose handlers take any number of controls."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr


def named(handler: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """A handler as gradio should describe it to programs.

    Args:
        handler: Takes a `gr.Request`, then one value for each name.
        names: What `Client.view_api` calls the values.
    """

    def answer(visit: gr.Request, *values: Any) -> Any:
        return handler(visit, *values)

    def stream(visit: gr.Request, *values: Any) -> Iterator[Any]:
        yield from handler(visit, *values)

    call: Any = stream if inspect.isgeneratorfunction(handler) else answer
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("visit", *names)
    ]
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {"visit": gr.Request}
    call.__doc__ = handler.__doc__
    return call
