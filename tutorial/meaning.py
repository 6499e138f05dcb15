"""Meaning representations, `function(attribute[value, value], attribute[])`, as data.

A value is any text without brackets and line breaks: none of ViGGO's 6,900 rows has either inside one, while
commas, parentheses, colons and apostrophes are common. A name (`priceRange`, `customer rating`) has no commas
either, begins and ends with a visible character, and a function's name has no parentheses. Attributes are
separated by a comma and one space. `Description` says which functions, attributes and values a task has.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import lark
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

# What a text may be: for the parser, the description and the grammar alike.
FUNCTION = r"[^\s()\[\],]([^()\[\],\r\n]*[^\s()\[\],])?"
ATTRIBUTE = r"[^\s()\[\],]([^\[\],\r\n]*[^\s\[\],])?"
VALUE = r"[^\[\]\r\n]"  # one character of it

SYNTAX = rf"""
    start: FUNCTION "(" ATTRIBUTE (_SEPARATOR ATTRIBUTE)* ")"
    _SEPARATOR: ", "
    FUNCTION: /{FUNCTION}/
    ATTRIBUTE: /{ATTRIBUTE}\[{VALUE}*\]/
"""


def _text(pattern: str) -> type[str]:
    return Annotated[str, Field(pattern=rf"^{pattern}\Z")]


def _several(kind: type[str]) -> type[list[str]]:
    def distinct(items: list[str]) -> list[str]:
        if len(set(items)) < len(items):
            raise ValueError("an item is in it twice")
        return items

    return Annotated[list[kind], Field(min_length=1), AfterValidator(distinct)]


class Description(BaseModel):
    """What a task's meaning representations may hold."""

    model_config = ConfigDict(extra="forbid", regex_engine="python-re")

    functions: _several(_text(FUNCTION))
    attributes: dict[_text(ATTRIBUTE), Literal["text", "list"] | _several(_text(f"{VALUE}+"))] = Field(
        min_length=1,
        description="`text`: one free value; `list`: several, separated by ', '; or the values it may have",
    )
    longest: PositiveInt = Field(80, description="characters of a free value at most; ViGGO's longest has 57")


@dataclass(frozen=True)
class Meaning:
    """One representation: attributes in the order written, each with its value's text, '' if it has none."""

    function: str
    attributes: tuple[tuple[str, str], ...]


class _Build(lark.Transformer):
    def start(self, children: list[lark.Token]) -> Meaning:
        function, *attributes = map(str, children)
        return Meaning(function, tuple(tuple(each[:-1].split("[")) for each in attributes))


PARSER = lark.Lark(SYNTAX, parser="lalr", transformer=_Build())
EXPECTED = {  # terminal of SYNTAX: in words
    "FUNCTION": "a function",
    "LPAR": "'('",
    "ATTRIBUTE": "attribute[value]",
    "RPAR": "', ' or ')'",
    "<END-OF-FILE>": "the end",
}


def parse(text: str) -> Meaning:
    """Read one representation; white space around it is accepted.

    Raises:
        ValueError: it is not one, in one line with the column, counted from its first visible character.
    """
    text = text.strip()
    try:
        return PARSER.parse(text)
    except lark.UnexpectedInput as error:
        ended = getattr(getattr(error, "token", None), "type", None) == "$END"
        allowed = error.allowed if isinstance(error, lark.UnexpectedCharacters) else error.expected
        expected = next(words for name, words in EXPECTED.items() if name in allowed)
        column = len(text) if ended else error.pos_in_stream
        found = repr(text[column : column + 30]) if text[column:] else "the end"
        raise ValueError(f"column {column + 1}: {expected} expected, not {found}") from None


def render(meaning: Meaning) -> str:
    """The representation as text: what `parse` read, less white space around it."""
    return f"{meaning.function}({', '.join(f'{name}[{value}]' for name, value in meaning.attributes)})"


def check(meaning: Meaning, description: Description) -> None:
    """Whether a task can have this meaning. An attribute without a value is always allowed.

    Raises:
        ValueError: a function, attribute or value that the description lacks, a free value longer than its
            `longest`, or an attribute given twice.
    """
    if meaning.function not in description.functions:
        raise ValueError(f"unknown function {meaning.function!r}")
    seen = set()
    for name, value in meaning.attributes:
        allowed = description.attributes.get(name)
        if allowed is None:
            raise ValueError(f"unknown attribute {name!r}")
        if name in seen:
            raise ValueError(f"attribute {name!r} is given twice")
        if value and isinstance(allowed, list) and value not in allowed:
            raise ValueError(f"attribute {name!r} cannot be {value!r}, only one of {', '.join(allowed)}")
        if not isinstance(allowed, list) and len(value) > description.longest:
            raise ValueError(
                f"attribute {name!r} has {len(value)} characters, meaning.longest is {description.longest}"
            )
        seen.add(name)


def canonical(meaning: Meaning, description: Description) -> Meaning:
    """The same meaning with its attributes in order of name, and a list attribute's values in order.

    An attribute that the description lacks is kept as it is.
    """
    ordered = (
        (name, ", ".join(sorted(value.split(", "))) if description.attributes.get(name) == "list" else value)
        for name, value in meaning.attributes
    )
    return Meaning(meaning.function, tuple(sorted(ordered)))


def grammar(description: Description) -> str:
    """The task's representations as a GBNF grammar (llama.cpp's notation, which xgrammar reads).

    It holds a model to what `check` allows: the names, the closed values, and at most `longest` characters
    of a free value. Attributes may come in any order; that none comes twice is left to `check`, as a grammar
    would have to list every order.
    """
    attributes = []
    for name, allowed in description.attributes.items():
        value = f"({' | '.join(map(_quoted, allowed))})" if isinstance(allowed, list) else "text"
        attributes.append(f'{_quoted(f"{name}[")} {value}? "]"')
    return "\n".join(
        [
            'root ::= function "(" attribute (", " attribute)* ")"',
            f"function ::= {' | '.join(map(_quoted, description.functions))}",
            f"attribute ::= {' | '.join(attributes)}",
            f"text ::= {VALUE}{{1,{description.longest}}}",
        ]
    )


def _quoted(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)  # GBNF escapes as JSON does
