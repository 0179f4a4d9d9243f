"""Whatever tokens are chosen, an answer by a schema is valid JSON for it when it ends, in time."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.assistant import EMBEDDED_PATH, Assistant
from omni.choosing import GenerationOptions
from omni.errors import SchemaError
from omni.grammar import MAX_GRAMMARS, Grammars
from omni.processor import OmniProcessor
from tests.support import tiny_omni

STOP = (11, 2)
TOKENIZERS = {
    "bytes": tiny_omni.byte_tokenizer(),
    "omni-tiny": OmniProcessor.from_pretrained(EMBEDDED_PATH, tiny_omni.omni_config()).tokenizer,
}
GRAMMARS = {name: Grammars(tokenizer, STOP) for name, tokenizer in TOKENIZERS.items()}

LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 3, "maxLength": 8},
            {"type": "string", "pattern": r"^[A-Z]{2}-\d{4}$"},
            {"type": "string", "pattern": r"foo.*bar"},
            {"type": "string", "pattern": r"^a*b$"},
            {"type": "string", "format": "date-time"},
            {"type": "string", "format": "uuid"},
            {"type": "integer"},
            {"type": "integer", "minimum": 100, "maximum": 999},
            {"type": "integer", "multipleOf": 7},
            {"type": "number"},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
            {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1},
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "boolean"},
            {"type": ["integer", "null"]},
            {"enum": ["red", "green", 3, None, {"a": [1.5]}]},
            {"const": 'quo"te\\'},
            {
                "allOf": [
                    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "null"}}},
                ]
            },
            {},
        ]
    ),
)


def objects(parts):
    names = st.sampled_from(["a", "total", "läng", 'say "x"'])
    return st.builds(
        lambda properties, required, extra: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            **extra,
        },
        st.dictionaries(names, parts, min_size=1, max_size=3),
        st.sets(names),
        st.sampled_from([{}, {"additionalProperties": {"type": "integer"}}]),
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        objects(parts),
        st.builds(
            lambda items, least, more: {
                "type": "array",
                "items": items,
                "minItems": least,
                "maxItems": least + more,
            },
            parts,
            st.integers(0, 2),
            st.integers(0, 3),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, parts, parts),
    ),
    max_leaves=6,
)


def babble(name, schema, budget, seed):
    """A random answer: any token that is allowed, with the budget as it is enforced."""
    answer = GRAMMARS[name].compile(schema).start()
    choose, tokens = random.Random(seed), []
    for left in range(budget, 0, -1):
        allowed = answer.allowed(len(TOKENIZERS[name])).nonzero()[:, 0].tolist()
        token = answer.take(choose.choice(allowed), left)
        assert len(answer.plan) < left
        if token in STOP:
            break
        tokens.append(token)
    return TOKENIZERS[name].decode(tokens, skip_special_tokens=True)


def assert_valid(text, schema):
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@settings(max_examples=150)
@given(st.sampled_from(sorted(TOKENIZERS)), SCHEMAS, st.integers(0, 60), st.integers(0, 999))
def test_any_answer_to_any_schema_is_valid_within_any_budget_that_is_not_refused(
    name, schema, more, seed
):
    shortest = len(GRAMMARS[name].compile(schema).shortest)
    assert_valid(babble(name, schema, shortest + more, seed), schema)


RECURSIVE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["name", "children", "next"],
        }
    },
    "$ref": "#/$defs/tree",
}


@pytest.mark.parametrize("seed", range(10))
def test_a_recursive_answer_comes_to_an_end(seed):
    assert_valid(babble("omni-tiny", RECURSIVE, 200, seed), RECURSIVE)


def test_parts_that_cannot_be_kept_are_named():
    bad = {
        "/properties/tags": {"properties": {"tags": {"type": "array", "uniqueItems": True}}},
        "/properties/when": {"properties": {"when": {"type": "string", "format": "moon"}}},
        "/": {"type": "strng"},
        "/items": {"items": {"type": "string", "pattern": "(?=a)b"}},
        "/properties/n": {
            "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 3}},
            "required": ["n"],
        },
    }
    for pointer, schema in bad.items():
        with pytest.raises(SchemaError, match=f"cannot be kept at {pointer}, "):
            GRAMMARS["bytes"].compile(schema)


def test_only_the_grammars_used_last_are_kept_and_answers_stay_right():
    schemas = [{"type": "array", "items": {"const": n}, "minItems": 1} for n in range(200)]
    grammars = Grammars(TOKENIZERS["bytes"], STOP)
    first = grammars.compile(schemas[0])
    for schema in schemas:
        shortest = grammars.compile(schema).shortest
        assert_valid(TOKENIZERS["bytes"].decode(shortest), schema)
        assert grammars.compile(schemas[0]) is first  # in use all the time
        assert len(grammars.compiled) <= MAX_GRAMMARS
    assert list(grammars.compiled) == [json.dumps(s) for s in (*schemas[137:], schemas[0])]


def test_threads_share_grammars_of_more_schemas_than_are_kept():
    grammars = Grammars(TOKENIZERS["bytes"], STOP)

    def answer(number):
        schema = {"const": f"number {number % (MAX_GRAMMARS + 20)}"}
        assert_valid(TOKENIZERS["bytes"].decode(grammars.compile(schema).shortest), schema)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(answer, range(500)))
    assert len(grammars.compiled) <= MAX_GRAMMARS


def test_a_schema_without_an_end_is_refused():
    endless = {"$defs": {"l": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/l"}}}}
    with pytest.raises(SchemaError, match="No answer of at most 4096 tokens"):
        GRAMMARS["bytes"].compile({**endless, "$ref": "#/$defs/l"})


# ---------------------------------------------------------------- in the model

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
OPTIONS = {"schema": PERSON, "max_new_tokens": 40}
SAMPLED = {**OPTIONS, "temperature": 1.5, "seed": 3}


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_omni.assistant()


@pytest.mark.parametrize("options", [OPTIONS, SAMPLED], ids=["best", "sampled"])
def test_replies_have_the_values_and_pieces_join_to_the_text(assistant, options):
    picture = tiny_omni.picture(24, 24)
    reply = assistant.ask("Who?", picture, **options)
    assert reply.parsed == json.loads(reply.text)
    assert_valid(reply.text, PERSON)
    assert "".join(assistant.stream("Who?", picture, **options)) == reply.text
    assert assistant.open(picture).ask("Who?", **options).parsed == reply.parsed


def test_rows_of_a_batch_keep_to_the_schema_each_for_itself(assistant):
    prompts = [
        assistant.prepare([{"role": "user", "content": text}], **OPTIONS)
        for text in ("Who?", "Who is it, and how old?", "?")
    ]
    together = assistant.reply_batch(prompts, **OPTIONS)
    assert len({reply.text for reply in together}) > 1
    for prompt, reply in zip(prompts, together, strict=True):
        assert_valid(reply.text, PERSON)
        assert assistant.reply_batch([prompt], **OPTIONS)[0].text == reply.text


@pytest.mark.parametrize("tokens", [25, 40, 90])
@pytest.mark.parametrize("budget", [None, 0, 5])
def test_reasoning_is_free_and_leaves_room_for_the_answer(assistant, tokens, budget):
    shortest = len(assistant.vocabulary.grammars.compile(PERSON).shortest)
    close = len(assistant.vocabulary.close_anywhere)
    options = {"max_new_tokens": shortest + close + tokens, "temperature": 1.0, "schema": PERSON}
    options |= {"reasoning_budget": budget, "reasoning_grace": 4}
    reply = assistant.ask("Who?", thinking=True, **options)
    assert_valid(reply.text, PERSON)
    assert reply.reasoning
    assert reply.ledger.answer_tokens <= options["max_new_tokens"]


def test_an_answer_that_was_ended_for_its_length_says_so(assistant):
    letters = {"type": "string", "pattern": "^[a-z]*$"}
    assert assistant.ask("Who?", schema=letters, max_new_tokens=9).finish_reason == "length"
    assert assistant.ask("Who?", schema={"const": 1}, max_new_tokens=9).finish_reason == "stop"
    assert assistant.ask("Who?", max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("thinking", [False, True])
def test_a_schema_that_does_not_fit_the_length_is_refused_with_the_numbers(assistant, thinking):
    options = {"schema": PERSON, "thinking": thinking}
    least = len(assistant.vocabulary.grammars.compile(PERSON).shortest)
    least += len(assistant.vocabulary.close_anywhere) if thinking else 0
    assert_valid(assistant.ask("Who?", max_new_tokens=least, **options).text, PERSON)
    with pytest.raises(SchemaError, match=f"max_new_tokens is {least - 1}.*takes {least} tokens"):
        assistant.ask("Who?", max_new_tokens=least - 1, **options)
    with pytest.raises(SchemaError, match=f"takes {least} tokens"):
        assistant.open(tiny_omni.picture(24, 24)).ask("Who?", max_new_tokens=2, **options)


def test_options_keep_a_schema_as_a_dict(tmp_path):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    options = GenerationOptions(schema=tmp_path / "person.json")
    assert options == GenerationOptions(schema=PERSON)
