"""What is asked about every item: texts, or a form of named fields, from Python or a YAML file.

total:
  question: What is the total?
  type: number
paid: Was it paid in cash or by card?
kind:
  question: What was bought?
  choices: [food, travel, other]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from omni.errors import RequestError
from omni.schema import read_schema

TYPES: dict[str, dict[str, Any] | None] = {
    "text": None,
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
KEYS = ("question", "type", "choices", "schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        text: What is asked.
        field: The name of the form's field.
        schema: What the answer keeps to, in place of the batch's schema.
    """

    text: str
    field: str | None = None
    schema: dict[str, Any] | None = None


def read_questions(given: Any) -> tuple[Question, ...]:
    """Questions as users give them.

    Args:
        given: Text, texts, or a form: a mapping from a field's name to its question, or to
            ``question`` with one of ``type`` (text, string, integer, number, boolean, date),
            ``choices`` (a list) or ``schema`` (as `omni.schema.read_schema` takes it).

    Raises:
        RequestError: A question is empty or no text, or a field has something else.
    """
    if isinstance(given, Mapping):
        return tuple(_field(name, value, None) for name, value in given.items())
    texts: Iterable[Any] = [given] if isinstance(given, str) else given
    questions = tuple(
        text if isinstance(text, Question) else Question(text=_text(text, "A question"))
        for text in texts
    )
    return questions


def read_form(path: str | Path) -> tuple[Question, ...]:
    """Questions of a YAML file; paths of schemas start at its folder.

    Raises:
        RequestError: The file cannot be read, or as `read_questions`.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: no questions can be read there ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: the file is no YAML ({error}).") from error
    if not isinstance(found, dict) or not found:
        raise RequestError(
            f"{path} has a {type(found).__name__}; expected fields, one or more, such as "
            "'total: What is the total?'."
        )
    return tuple(_field(name, value, path.parent) for name, value in found.items())


def _field(name: Any, value: Any, folder: Path | None) -> Question:
    if not isinstance(name, str):
        raise RequestError(
            f"The form has the field {name!r}; expected a name, in quotes if need be."
        )
    if isinstance(value, str):
        return Question(text=_text(value, f"The field {name!r}"), field=name)
    if not isinstance(value, Mapping):
        raise RequestError(
            f"The field {name!r} is {value!r:.80}; expected its question, or 'question' with "
            "'type', 'choices' or 'schema'."
        )
    for key in value:
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, n=1, cutoff=0.0)[0]
            raise RequestError(f"The field {name!r} has {key!r}; did you mean {near!r}?")
    given = [key for key in ("type", "choices", "schema") if key in value]
    if len(given) > 1:
        raise RequestError(f"The field {name!r} has {' and '.join(given)}; expected one of them.")
    return Question(
        text=_text(value.get("question"), f"'question' of the field {name!r}"),
        field=name,
        schema=_schema(name, value, folder),
    )


def _schema(name: str, value: Mapping[str, Any], folder: Path | None) -> dict[str, Any] | None:
    if "schema" in value:
        given = value["schema"]
        if isinstance(given, str) and folder is not None and (folder / given).exists():
            given = folder / given
        return read_schema(given)
    if "choices" in value:
        choices = value["choices"]
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise RequestError(
                f"'choices' of the field {name!r} is {choices!r:.80}; expected a list such as "
                "[cash, card]."
            )
        return read_schema({"enum": list(choices)})
    kind = value.get("type", "text")
    if kind not in TYPES:
        raise RequestError(
            f"'type' of the field {name!r} is {kind!r}; expected {', '.join(TYPES)}, or use "
            "'choices' or 'schema'."
        )
    return TYPES[kind]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty" if value in (None, "") or isinstance(value, str) else f"{value!r:.80}"
        raise RequestError(f"{name} is {found}; expected text.")
    return value
