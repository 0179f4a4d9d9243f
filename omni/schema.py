"""JSON Schemas that answers keep to: where they come from, and how they are read.

Two readings of a schema are narrower than the standard's, so that an answer which keeps to them
is valid, finite and what was meant:

- An object with ``properties`` has no others, unless ``additionalProperties`` (or ``allOf``
  anywhere, which puts objects together) says so.
- A number without a bound of its own lies within 10^15, where every reader of JSON is exact. A
  date is one of the calendar.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omni.errors import SchemaError

MOST = 10**15  # of numbers without a bound

_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # of schemas by name
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "contains", "propertyNames")
_KEYWORDS = frozenset(
    {
        *(*_MAPS, *_LISTS, *_SINGLE, "type", "enum", "const", "$ref", "$schema", "$id", "title"),
        *(
            "description",
            "default",
            "example",
            "examples",
            "format",
            "pattern",
            "required",
            "minimum",
        ),
        *("maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength"),
        *("maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"),
        *("if", "then", "else", "dependentRequired", "dependentSchemas", "unevaluatedProperties"),
    }
)
_FAMILIES = {  # keywords which mean a type, where a schema names none
    "object": {"properties", "patternProperties", "additionalProperties", "required"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_OF_ANY_TYPE = {"enum", "const", "$ref", "anyOf", "oneOf", "allOf"}
_ANY = "any-value"  # the name of a definition that is added for values without a schema

_YEAR = r"[1-9][0-9]{3}"
_LEAP = r"(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DAYS = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = rf"(?:{_YEAR}-{_DAYS}|{_LEAP}-02-29)"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def read_schema(given: Any) -> dict[str, Any]:
    """Read a schema from where a user has it.

    Args:
        given: A JSON Schema as a mapping; the path of a JSON file with one; a pydantic model
            class; or such a class by name, ``module:Class``, the module below the current folder
            or installed.

    Returns:
        The schema as plain JSON types.

    Raises:
        SchemaError: There is no schema there.
    """
    if isinstance(given, Mapping):
        return _plain(given, "The schema")
    if hasattr(given, "model_json_schema"):
        return _plain(given.model_json_schema(), given.__name__)
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        if re.fullmatch(r"[\w.]+:\w+", text) and not os.path.lexists(text):
            return read_schema(_import(text))
        return _read_file(Path(text))
    raise SchemaError(
        f"The schema is a {type(given).__name__}; expected a JSON Schema as a dict or a file, or a "
        "pydantic model class."
    )


def _plain(value: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{name} is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise SchemaError(
            f"{name} is a {type(found).__name__}; expected an object such as "
            '{"type": "object", "properties": {"total": {"type": "number"}}}.'
        )
    return found


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _plain(json.loads(path.read_bytes()), str(path))
    except OSError as error:
        raise SchemaError(
            f"{path}: no schema can be read there ({error.strerror}); expected a JSON file, or "
            "module:Class of a pydantic model."
        ) from error
    except ValueError as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{path}: the file is no JSON ({error}).") from error


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SchemaError(f"{name}: {error}; expected module:Class of a pydantic model.") from error
    finally:
        sys.path.remove(here)
    if not hasattr(found, "model_json_schema"):
        raise SchemaError(f"{name} is a {type(found).__name__}; expected a pydantic model class.")
    return found


def parts_of(schema: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema and itself, innermost first, with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    for place, inner in _inner(schema):
        yield from parts_of(inner, f"{pointer}/{place}")
    yield pointer or "/", schema


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        elif name in _LISTS and isinstance(value, list):
            yield from ((f"{name}/{index}", inner) for index, inner in enumerate(value))
        elif name in _SINGLE:
            yield name, value


def check_keywords(schema: dict[str, Any]) -> None:
    """Refuse what a grammar would pass over or could not keep.

    Raises:
        SchemaError: A keyword is a likely slip of the pen, or counts keys that are free.
    """
    for pointer, part in parts_of(schema):
        for name in part:
            near = get_close_matches(name, _KEYWORDS, n=1, cutoff=0.8)
            if name not in _KEYWORDS and near:
                raise SchemaError(
                    f"The schema has the unknown keyword {name!r} at {pointer}; did you mean "
                    f"{near[0]!r}?"
                )
        least = part.get("minProperties", 0)
        if not isinstance(least, int):
            raise SchemaError(
                f"The schema has minProperties {least!r} at {pointer}; expected a whole number."
            )
        types = part.get("type", ())
        if not all(isinstance(name, str) for name in (types if _is_list(types) else [types])):
            raise SchemaError(
                f"The schema has the type {types!r} at {pointer}; expected a name such as "
                "'string', or a list of names."
            )
        if "minProperties" in part and part["minProperties"] > len(part.get("required", ())):
            raise SchemaError(
                f"The schema asks for minProperties {part['minProperties']} at {pointer}, which "
                "cannot be kept, since a key may come twice; name the keys in 'required'."
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def narrow(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the grammar keeps it; see the top of this file. Its answers validate."""
    closes = not any("allOf" in part for _, part in parts_of(schema))
    result: dict[str, Any] = _narrow(schema, closes)
    if f'"#/$defs/{_ANY}"' in json.dumps(result):
        result["$defs"] = {**result.get("$defs", {}), _ANY: _any_value()}
    return result


def _narrow(schema: Any, closes: bool) -> Any:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        return schema
    part = _map_inner(schema, lambda inner: _narrow(inner, closes))
    if "type" not in part and not _OF_ANY_TYPE & part.keys():
        found = [name for name, keywords in _FAMILIES.items() if keywords & part.keys()]
        if len(found) > 1:
            return part
        if not found:
            return {"$ref": f"#/$defs/{_ANY}", **part}
        part["type"] = found[0]
    types = part.get("type", ())
    types = {types} if isinstance(types, str) else set(types)
    if "enum" in part or "const" in part:
        return part
    if types & {"integer", "number"}:
        _bound(part)
    if "object" in types:
        _close(part, closes)
    if "array" in types and part.get("items") is None:
        part["items"] = {"$ref": f"#/$defs/{_ANY}"}
    if part.get("format") in _FORMATS and "pattern" not in part:
        part["pattern"] = _FORMATS[part.pop("format")]
    return part


def _map_inner(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    result = dict(schema)
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, dict):
            result[name] = {key: change(inner) for key, inner in value.items()}
        elif name in _LISTS and isinstance(value, list):
            result[name] = [change(inner) for inner in value]
        elif name in _SINGLE:
            result[name] = change(value)
    return result


def _bound(part: dict[str, Any]) -> None:
    low = [part[name] for name in ("minimum", "exclusiveMinimum") if name in part]
    high = [part[name] for name in ("maximum", "exclusiveMaximum") if name in part]
    if not low and all(_is_number(value) and value > -MOST for value in high):
        part["minimum"] = -MOST
    if not high and all(_is_number(value) and value < MOST for value in low):
        part["maximum"] = MOST
    for own, plain, others, sign in (
        ("exclusiveMinimum", "minimum", high, 1),
        ("exclusiveMaximum", "maximum", low, -1),
    ):
        # llguidance 1.9 takes "0" for above 0 and at most 0.5: a whole number that is excluded, and
        # another bound within one of it. There we step inside by 1/10,000 of the room.
        edge: Any = part.get(own)
        if not _is_number(edge) or edge != int(edge):
            continue
        near = [value for value in others if _is_number(value) and abs(value - edge) < 1]
        if near:
            part[plain] = round(edge + sign * min(abs(value - edge) for value in near) * 1e-4, 12)
            del part[own]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(part: dict[str, Any], closes: bool) -> None:
    if "additionalProperties" in part:
        return
    named = part.get("properties", {})
    is_open = set(part.get("required", ())) - set(named) or _OF_ANY_TYPE & part.keys()
    if closes and named and not is_open and "patternProperties" not in part:
        part["additionalProperties"] = False
    elif not closes:  # a recursive schema has no end when put together with itself
        part["additionalProperties"] = _a_scalar()
    else:
        part["additionalProperties"] = {"$ref": f"#/$defs/{_ANY}"}


def _a_scalar() -> dict[str, Any]:
    kinds = ["null", "boolean", "string", "number"]
    return {"type": kinds, "minimum": -MOST, "maximum": MOST}


def _any_value() -> dict[str, Any]:
    again = {"$ref": f"#/$defs/{_ANY}"}
    return {
        "anyOf": [
            _a_scalar(),
            {"type": "array", "items": again},
            {"type": "object", "additionalProperties": again},
        ]
    }


def literals_of(schema: dict[str, Any]) -> list[str]:
    """Text that patterns name, and its tails: what may have to follow where anything may."""
    found: dict[str, None] = {}
    for _, part in parts_of(schema):
        patterns = [part.get("pattern"), *part.get("patternProperties", ())]
        for pattern in patterns:
            if isinstance(pattern, str):
                pattern = re.sub(r"\[[^\]]*\]|\\[a-zA-Z]|\{[^}]*\}", "^", pattern)  # not literal
                for run in re.findall(r"(?:\\[^\w\s]|[^\\^$.|?*+()\[\]{}])+", pattern):
                    text = re.sub(r"\\(.)", r"\1", run)
                    found |= dict.fromkeys(text[start:] for start in range(len(text)))
    return list(found)
