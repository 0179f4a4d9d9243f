"""Schemas are read from where users have them, and the way they are narrowed keeps them valid."""

import datetime
import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from omni.errors import SchemaError
from omni.schema import MOST, check_keywords, literals_of, narrow, parts_of, read_schema

RECEIPT = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}


class Receipt(BaseModel):
    shop: str
    total: float


def test_a_schema_is_a_dict_a_file_a_pydantic_class_or_the_name_of_one(tmp_path, monkeypatch):
    (tmp_path / "receipt.json").write_text(json.dumps(RECEIPT))
    (tmp_path / "forms_of_mine.py").write_text(
        "from pydantic import BaseModel\nclass Note(BaseModel):\n    text: str\n"
    )
    assert read_schema(RECEIPT) == RECEIPT
    assert read_schema(tmp_path / "receipt.json") == RECEIPT
    assert read_schema(Receipt) == Receipt.model_json_schema()
    monkeypatch.chdir(tmp_path)
    assert read_schema("receipt.json") == RECEIPT
    assert list(read_schema("forms_of_mine:Note")["properties"]) == ["text"]


@pytest.mark.parametrize(
    ("given_value", "message"),
    [
        (3, "The schema is a int; expected a JSON Schema as a dict or a file"),
        ("nowhere.json", "nowhere.json: no schema can be read there"),
        ("nowhere_at_all:Note", "nowhere_at_all:Note: No module named"),
        ("json:loads", "json:loads is a function; expected a pydantic model class"),
        ({"const": {1, 2}}, "The schema is no JSON"),
        ({"const": float("nan")}, "The schema is no JSON"),
    ],
)
def test_what_is_no_schema_is_refused(given_value, message):
    with pytest.raises(SchemaError, match=re.escape(message)):
        read_schema(given_value)


def test_a_file_with_something_else_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"type"')
    with pytest.raises(SchemaError, match="is a list; expected an object"):
        read_schema(tmp_path / "list.json")
    with pytest.raises(SchemaError, match="the file is no JSON"):
        read_schema(tmp_path / "torn.json")


def test_slips_of_the_pen_are_named_with_their_place():
    with pytest.raises(SchemaError, match="'minimun' at /properties/n; did you mean 'minimum'"):
        check_keywords({"properties": {"n": {"type": "integer", "minimun": 3}}})
    check_keywords({"properties": {"minimun": {"type": "integer"}}, "x-mine": 1, "example": 3})


def test_keys_that_may_come_twice_are_not_counted():
    with pytest.raises(SchemaError, match="minProperties 2 at /"):
        check_keywords({"type": "object", "minProperties": 2})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": 5}, "type 5 at /; expected a name such as 'string'"),
        ({"items": {"type": ["string", None]}}, "at /items; expected a name"),
        (
            {"type": "object", "minProperties": "1"},
            "minProperties '1' at /; expected a whole number",
        ),
    ],
)
def test_keywords_of_another_type_are_refused(schema, message):
    with pytest.raises(SchemaError, match=re.escape(message)):
        check_keywords(schema)


def test_parts_come_innermost_first():
    pointers = [pointer for pointer, _ in parts_of({"items": {"anyOf": [{}, {}]}})]
    assert pointers == ["/items/anyOf/0", "/items/anyOf/1", "/items", "/"]


def test_objects_with_properties_are_closed_unless_they_say_otherwise():
    assert narrow(RECEIPT)["additionalProperties"] is False
    assert narrow({**RECEIPT, "additionalProperties": True})["additionalProperties"] is not False
    parts = [{"properties": {name: {"type": "null"}}} for name in "ab"]
    assert narrow({"allOf": parts})["allOf"][0]["additionalProperties"] is not False
    assert narrow({**RECEIPT, "required": ["other"]})["additionalProperties"] is not False


def test_numbers_keep_their_bounds_and_get_what_they_lack():
    assert narrow({"type": "integer"}) == {"type": "integer", "minimum": -MOST, "maximum": MOST}
    assert narrow({"type": "number", "exclusiveMinimum": 0})["maximum"] == MOST
    assert "maximum" not in narrow({"type": "number", "minimum": 10 * MOST})


@given(st.integers(1_000, 9_999), st.integers(0, 13), st.integers(0, 32))
def test_a_date_is_one_of_the_calendar(year, month, day):
    text = f"{year}-{month:02}-{day:02}"
    pattern = narrow({"type": "string", "format": "date"})["pattern"]
    try:
        datetime.date.fromisoformat(text)
        exists = True
    except ValueError:
        exists = False
    assert bool(re.search(pattern, text)) == exists


def test_literals_of_patterns_come_with_their_tails():
    found = literals_of({"properties": {"file": {"pattern": r"^ab.*\.pdf$"}}})
    assert found == ["ab", "b", ".pdf", "pdf", "df", "f"]


def test_narrowing_leaves_no_doubt_about_the_standard():
    """What it makes is a schema, too."""
    for schema in (RECEIPT, {}, {"type": "object"}, {"items": {}}, Receipt.model_json_schema()):
        jsonschema.Draft202012Validator.check_schema(narrow(schema))
