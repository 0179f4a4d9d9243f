"""Forms and questions are read, or what is wrong with them is said."""

import json
import re

import pytest

from omni.batching.questions import TYPES, Question, read_form, read_questions
from omni.errors import RequestError, SchemaError


def test_questions_are_texts_or_named_fields():
    assert read_questions("What?") == (Question(text="What?"),)
    assert read_questions(["What?", "Where?"])[1].text == "Where?"
    assert read_questions(()) == ()
    assert read_questions({"a": "What?"}) == (Question(text="What?", field="a"),)


def test_a_form_from_a_file_is_the_form_from_python(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps({"type": "array"}))
    (tmp_path / "form.yaml").write_text(
        "total: {question: 'How much?', type: number}\n"
        "items:\n  question: Which items?\n  schema: items.json\n"
        "paid: {question: 'How?', choices: [cash, card, true]}\n"
        "note: What else is there?\n"
    )
    assert read_form(tmp_path / "form.yaml") == read_questions(
        {
            "total": {"question": "How much?", "schema": {"type": "number"}},
            "items": {"question": "Which items?", "schema": {"type": "array"}},
            "paid": {"question": "How?", "schema": {"enum": ["cash", "card", True]}},
            "note": {"question": "What else is there?", "type": "text"},
        }
    )


@pytest.mark.parametrize("kind", TYPES)
def test_types_are_schemas(kind):
    assert read_questions({"a": {"question": "?", "type": kind}})[0].schema == TYPES[kind]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"a": ""}, "The field 'a' is empty; expected text"),
        ({"a": {"type": "number"}}, "'question' of the field 'a' is empty"),
        ({"a": {"question": "?", "tpye": "number"}}, "has 'tpye'; did you mean 'type'?"),
        ({"a": {"question": "?", "type": "float"}}, "'type' of the field 'a' is 'float'; expected"),
        (
            {"a": {"question": "?", "type": "date", "choices": [1]}},
            "type and choices; expected one",
        ),
        ({"a": {"question": "?", "choices": "yes"}}, "'choices' of the field 'a' is 'yes'"),
        ({"a": ["?"]}, "The field 'a' is ['?']; expected its question"),
        ({True: "?"}, "The form has the field True; expected a name"),
        (["", "What?"], "A question is empty; expected text"),
        ([3], "A question is 3; expected text"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(form, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        read_questions(form)


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    with pytest.raises(RequestError, match="no questions can be read there"):
        read_form(tmp_path / "nowhere.yaml")
    for text, message in (("- a", "has a list; expected fields"), ("{", "the file is no YAML")):
        (tmp_path / "form.yaml").write_text(text)
        with pytest.raises(RequestError, match=message):
            read_form(tmp_path / "form.yaml")
    (tmp_path / "form.yaml").write_text("a: {question: '?', schema: other.json}")
    with pytest.raises(SchemaError, match=r"other\.json: no schema can be read there"):
        read_form(tmp_path / "form.yaml")
