"""A row's own `media_options`: sampling and reduction that hold for this row only."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune.data.sample import RowError
from omni import MediaOptions
from omni.errors import RequestError

KEY = "media_options"


def read_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the options of a row.

    Args:
        row: May have `KEY`: an object with fields of `omni.MediaOptions`.

    Returns:
        The fields that are set.

    Raises:
        RowError: An unknown field, or a value that is none.
    """
    values = row.get(KEY)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise RowError(f"found {values!r:.60} as {KEY}, expected an object")
    values = {name: value for name, value in values.items() if value is not None}
    if isinstance(values.get("reduction"), Mapping):  # arrow fills in the keys of other rows
        values["reduction"] = {k: v for k, v in values["reduction"].items() if v is not None}
    hints = get_type_hints(MediaOptions)
    known = [each.name for each in dataclasses.fields(MediaOptions)]
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise RowError(f"{KEY}: found the key {name!r}; did you mean {near!r}?")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].lower()
            raise RowError(f"{KEY}: found {name}={value!r:.40}; {problem}") from error
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise RowError(f"{KEY}: found {name}={value}, expected a number above 0")
    try:
        MediaOptions(**values)
    except RequestError as error:
        raise RowError(f"{KEY}: {error}") from error
    return values


def merge_options(defaults: MediaOptions, row: Mapping[str, Any]) -> MediaOptions:
    """What a row sets over what holds for the whole run; reductions modality by modality."""
    merged = dict(row)
    if "reduction" in merged:
        merged["reduction"] = {**defaults.reduction, **merged["reduction"]}
    return dataclasses.replace(defaults, **merged)
