"""JSON answers: what is one, its schema, and a grammar that accepts what the schema allows and no more."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_meaning import accepts, repeatable
from tutorial import schema

ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "paid": {"type": ["boolean", "null"]},
    },
    "required": ["items"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"product": {"enum": ["tea", "oat milk"]}, "count": {"type": "integer"}},
            "required": ["product", "count"],
            "additionalProperties": False,
        }
    },
}
GOOD = {"name": 'Ann "A" \\ Ü', "items": [{"product": "tea", "count": 2}], "paid": None}
letters = st.characters(exclude_categories=["Cs", "Cc"])
keys = st.text(letters, min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(letters, max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, values, min_size=1, max_size=3)


@pytest.mark.parametrize("separators", schema.STYLES)
def test_a_grammar_allows_what_the_schema_allows_and_no_free_white_space(separators):
    grammar = schema.grammar(ORDER, separators)
    text = json.dumps(GOOD, ensure_ascii=False, separators=separators)
    assert accepts(grammar, text)
    assert accepts(grammar, json.dumps(GOOD, separators=separators))  # \u00dc
    first, second = separators
    for wrong in (
        text.replace(first, f"{first} "),
        text.replace(second, f"{second}\n"),
        text.replace("{", "{ ", 1),
        f" {text}",
        f"{text}\n",
        text.replace("tea", "coffee"),
        text.replace("2", "2.5"),
        text.replace('"name"', '"title"'),
        text[:-1],
    ):
        assert not accepts(grammar, wrong), wrong


@given(st.lists(objects, min_size=1, max_size=4), st.sampled_from(schema.STYLES))
@repeatable
def test_a_schema_that_is_made_allows_what_it_was_made_from(found, style):
    """And its grammar does, if the keys come in the schema's order."""
    made = schema.check_schema(schema.of(found))
    for each in found:
        schema.check(each, made)
    once = schema.of(found[:1])
    text = json.dumps(found[0], separators=style, ensure_ascii=False)
    assert schema.separators([text]) in (style, schema.STYLES[0])
    assert accepts(schema.grammar(once, style), text)


def test_a_schema_that_is_made_says_types_order_and_what_is_always_there():
    rows = [
        {"b": 1, "c": [1, 2.5], "e": {"x": "y"}},
        {"a": "s", "b": 2, "d": None, "e": {}},
        {"b": 3, "d": True},
    ]
    made = schema.of(rows)
    assert list(made["properties"]) == [
        "a",
        "b",
        "d",
        "c",
        "e",
    ]  # a new key stands behind the one that it follows
    assert made["required"] == ["b"]
    assert made["additionalProperties"] is False
    assert made["properties"]["b"] == {"type": "integer"}
    assert made["properties"]["c"] == {"type": "array", "items": {"type": "number"}}
    assert made["properties"]["d"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
    assert made["properties"]["e"]["required"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON (Expecting value: character 1)"),
        ('{"a": 1', "not JSON (Expecting ',' delimiter: character 8)"),
        ('{"a": 1} and more', "not JSON (Extra data: character 10)"),
        ("[1]", "a JSON object is needed"),
        ("3", "a JSON object is needed"),
        ('{"a": 1, "a": 1}', "a key is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "a key is given twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e400}', "1e400 is not JSON"),  # Python reads it as infinity
        ('{"a":' * 100_000, "not JSON that can be read (nested too deeply)"),
    ],
)
def test_what_is_no_json_object_is_told_in_one_line(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared whole
        schema.parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": 3}, "items: 3 is not of type 'array'"),
        ({"items": [{"product": "rum", "count": 1}]}, "items[0].product: 'rum' is not one of"),
        ({"title": "x"}, "Additional properties are not allowed ('title' was unexpected)"),
    ],
)
def test_what_a_schema_refuses_names_the_field(change, message):
    schema.check(GOOD, ORDER)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        schema.check(GOOD | change, ORDER)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"type": "array"},
        {"type": "object", "properties": {"a": {"type": "text"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}},
    ],
)
def test_refused_schemas(wrong):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        schema.check_schema(wrong)
    assert "\n" not in str(error.value)


def test_objects_that_are_the_same_have_one_text():
    one, other = '{"a": 2.0, "b": {"c": 1, "d": []}}', '{"b":{"d":[],"c":1},"a":2}'
    assert schema.canonical(schema.parse(one)) == schema.canonical(schema.parse(other))
    assert schema.canonical({"a": True}) != schema.canonical({"a": 1})
    assert schema.canonical({"a": [1, 2]}) != schema.canonical({"a": [2, 1]})


def test_the_fields_of_an_object():
    found = {"customer": {"first name": "Ü"}, "items": [{"n": 1}, {"n": 2.0}], "tags": [], "none": None}
    assert list(schema.leaves(found)) == [
        ("customer.first name", '"Ü"'),
        ("items[].n", "1"),
        ("items[].n", "2"),
        ("tags", "[]"),
        ("none", "null"),
    ]


def test_separators_are_those_of_most_rows():
    assert schema.separators(['{"a": 1, "b": 2}', '{"a":1}', '{"a":1,"b":2}']) == (",", ":")
    assert schema.separators(['{"a": "é", "b": 2}', '{"a":1}', '{"a": "\\u00e9"}']) == (", ", ": ")
    assert schema.separators(['{\n  "a": 1\n}']) == (", ", ": ")  # neither: the first
