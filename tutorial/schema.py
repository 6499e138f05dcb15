"""JSON answers: reading them, their schema, and the grammar that guides a model to it.

A schema is JSON Schema of draft 2020-12. The package `jsonschema` checks objects against it, and xgrammar
makes the grammar. vLLM's own option for JSON, `structured_outputs: {json: schema}`, allows white space of any
length between two tokens, and a small model can write it until its answer is cut off. vLLM can only turn that
off for a whole engine. So we send a grammar instead. It has the separators that the training rows have.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match

from tutorial import one_line

STYLES = ((", ", ": "), (",", ":"))  # separators: json.dumps' own first
LONGEST = 200  # characters of a message


def parse(text: str) -> dict[str, Any]:
    """The one JSON object that a text is, white space around it aside.

    Raises:
        ValueError: it is none, or not all programs would read the same in it: a key is given twice, or a
            number is not finite.
    """
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}: character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(found, dict):
        raise ValueError("a JSON object is needed")
    return found


def check(found: dict[str, Any], schema: dict[str, Any]) -> None:
    """Whether the schema allows this object.

    Raises:
        ValueError: it does not; the message names the field.
    """
    if error := best_match(Draft202012Validator(schema).iter_errors(found)):
        field = error.json_path.removeprefix("$").removeprefix(".")
        raise ValueError(f"{field}: {error.message}".removeprefix(": ")[:LONGEST])


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, if it is one of objects and a grammar can be made from it.

    Raises:
        ValueError: it is not.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}"[:LONGEST]) from None
    if schema.get("type") != "object":
        raise ValueError("an answer is one object: write `type: object`")
    if far := next((address for address in _references(schema) if not address.startswith("#")), None):
        raise ValueError(f"$ref: {far}: only a place in the same schema, `#/...`, can be referred to")
    grammar(schema, STYLES[0])
    return schema


def of(objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A schema that allows these objects: types, keys in their order, keys that are always there.

    It does not close the set of a field's values. To do so, write a schema with `enum` in the task file.
    """
    return _of(list(objects))


def grammar(schema: dict[str, Any], separators: tuple[str, str]) -> str:
    """The schema as a grammar (GBNF) without free white space; keys come in the schema's order, in UTF-8.

    Args:
        separators: between two fields, and between a key and its value.

    Raises:
        ValueError: xgrammar makes none from this schema.
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


def separators(texts: Iterable[str]) -> tuple[str, str]:
    """Which of `STYLES` most of these JSON texts are written in."""
    found = Counter(style for text in texts for style in STYLES if _written(text, style))
    return max(STYLES, key=lambda style: found[style])


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
    return json.dumps(_whole(value), sort_keys=True, ensure_ascii=False)


def _of(values: list[Any]) -> dict[str, Any]:
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    found = [_object_of(objects)] if objects else []
    if lists:
        items = [item for each in lists for item in each]
        found.append({"type": "array"} | ({"items": _of(items)} if items else {}))
    names = {_name(value) for value in values if not isinstance(value, dict | list)}
    names -= {"integer"} if "number" in names else set()
    found += [{"type": name} for name in sorted(names)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _object_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    order: list[str] = []
    for each in objects:
        place = 0
        for key in each:  # a new key stands behind the one that it follows
            if key not in order:
                order.insert(place, key)
            place = order.index(key) + 1
    return {
        "type": "object",
        "properties": {key: _of([each[key] for each in objects if key in each]) for key in order},
        "required": [key for key in order if all(key in each for each in objects)],
        "additionalProperties": False,
    }


def _references(value: Any) -> Iterator[str]:
    """What a schema refers to: jsonschema would fetch an address."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and isinstance(address := value.get("$ref"), str):
        yield address
    for each in inner:
        yield from _references(each)


def _name(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return names[type(value)]


def _written(text: str, style: tuple[str, str]) -> bool:
    found = json.loads(text)
    return text.strip() in {json.dumps(found, separators=style, ensure_ascii=way) for way in (False, True)}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
