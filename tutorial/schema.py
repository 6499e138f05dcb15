"""Answers that are JSON objects: reading them, their schema, the grammar that guides a model to it.

A schema is JSON Schema of draft 2020-12. The package `jsonschema` checks objects against it, and xgrammar
makes the grammar. vLLM's own option for JSON, `structured_outputs: {json: schema}`, allows white space of any
length between two tokens, and a small model can write it until its answer is cut off. vLLM can only turn that
off for a whole engine. So we send a grammar instead. It has the separators that the training rows have.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match

from tutorial import one_line
from tutorial.kind import Compared, Kind, part_metrics

STYLES = ((", ", ": "), (",", ":"))  # separators: json.dumps' own first
LONGEST = 200  # characters of a message
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def parse(text: str) -> dict[str, Any]:
    """The one JSON object that a text is, white space around it aside.

    ValueError if it is none, or if not all programs would read the same in it: a key is given twice, or a
    number is not finite.
    """
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}: character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(found, dict):
        raise ValueError("a JSON object is needed")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not JSON")
    return number


def check(found: dict[str, Any], schema: dict[str, Any]) -> None:
    """ValueError, naming the field, if the schema does not allow this object."""
    if error := best_match(Draft202012Validator(schema).iter_errors(found)):
        field = error.json_path.removeprefix("$").removeprefix(".")
        raise ValueError(f"{field}: {error.message}".removeprefix(": ")[:LONGEST])


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema; ValueError if it is not one of objects, or no grammar can be made from it."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}"[:LONGEST]) from None
    if schema.get("type") != "object":
        raise ValueError("an answer is one object: write `type: object`")
    if far := re.search(r'"\$ref": "([^#"][^"]*)', json.dumps(schema)):  # jsonschema would fetch it
        raise ValueError(f"$ref: {far[1]}: only a place in the same schema, `#/...`, can be referred to")
    grammar(schema, STYLES[0])
    return schema


def of(values: Iterable[Any]) -> dict[str, Any]:
    """A schema that allows these objects: types, keys in their order, keys that are always there.

    It does not close the set of a field's values. To do so, write a schema with `enum` in the task file.
    """
    values = list(values)
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    names = {TYPES[type(value)] for value in values if not isinstance(value, dict | list)}
    found = [_of_objects(objects)] if objects else []
    if lists:
        items = [item for each in lists for item in each]
        found.append({"type": "array"} | ({"items": of(items)} if items else {}))
    found += [{"type": name} for name in sorted(names) if name != "integer" or "number" not in names]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _of_objects(objects: list[dict[str, Any]]) -> dict[str, Any]:
    order: list[str] = []
    for each in objects:
        place = 0
        for key in each:  # a new key stands behind the one that it follows
            if key not in order:
                order.insert(place, key)
            place = order.index(key) + 1
    return {
        "type": "object",
        "properties": {key: of(each[key] for each in objects if key in each) for key in order},
        "required": [key for key in order if all(key in each for each in objects)],
        "additionalProperties": False,
    }


def grammar(schema: dict[str, Any], separators: tuple[str, str]) -> str:
    """The schema as a grammar (GBNF) without free white space; keys come in the schema's order, in UTF-8.

    The separators are those between two fields, and between a key and its value. ValueError if xgrammar makes
    no grammar from this schema.
    """
    from xgrammar import Grammar  # imports torch

    try:
        made = Grammar.from_json_schema(json.dumps(schema), any_whitespace=False, separators=separators)
        # xgrammar writes ö as \xf6, and reads what follows as part of it if that is a digit or a to f.
        text = re.sub(r"\\(?:\\|x([0-9a-f]{2}))", lambda m: rf"\u00{m[1]}" if m[1] else m[0], str(made))
        Grammar.from_ebnf(text)  # as vLLM reads it
    except RuntimeError as error:
        raise ValueError(f"no grammar can be made from it ({one_line(error)[:LONGEST]})") from None
    return text


def separators(texts: list[str]) -> tuple[str, str]:
    """Which of `STYLES` most of these JSON texts are written in."""

    def written(text: str, style: tuple[str, str]) -> bool:
        return text.strip() == json.dumps(json.loads(text), separators=style, ensure_ascii=text.isascii())

    return max(STYLES, key=lambda style: sum(written(text, style) for text in texts))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each field of an object, with its value as JSON: `customer.name`, and `items[].name` for each item.

    An empty object or list is a value itself. 2.0 is 2, as JSON Schema has it.
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, canonical(value)


def canonical(value: Any) -> str:
    """JSON that is the same for values that are the same: keys in order, 2.0 as 2."""

    def whole(text: str) -> float:
        return int(number) if (number := float(text)).is_integer() else number

    return json.dumps(json.loads(json.dumps(value), parse_float=whole), sort_keys=True, ensure_ascii=False)


class Objects(Kind):
    """JSON objects of one schema. Intervals count distinct objects, as several questions may have one.

    A field is what `leaves` yields. In a list its place does not count, except for the same object.
    """

    name, unit, part = "JSON", "objects", "field"
    metrics: ClassVar = {
        "exact match": lambda row: row.right,
        "same object": lambda row: row.said == row.meant,  # the order of keys and white space aside
        **part_metrics("field"),
    }
    mistaken: ClassVar = {
        "not a JSON object": lambda row: not row.parses,
        "missing field": Compared.missing,
        "invented field": Compared.invented,
        "wrong value": lambda row: row.said != row.meant,
        "same object": lambda row: True,
    }
    shown = ("exact match", "same object", "field precision", "field recall", "field F1", "valid answers")

    def __init__(self, schema: dict[str, Any], separators: tuple[str, str]):
        self.schema = schema
        self.guide = {"structured_outputs": {"grammar": grammar(schema, separators)}}

    def read(self, text: str) -> tuple[str, Iterator[tuple[str, str]]]:
        """The object as canonical text, and its fields."""
        found = parse(text)
        return canonical(found), leaves(found)

    def check(self, said: str) -> None:
        """See `schema.check`."""
        check(json.loads(said), self.schema)

    def units(self, rows: list[Compared], inputs: list[str] | None) -> list[str]:
        """The objects, however they are written."""
        return [row.meant for row in rows]
