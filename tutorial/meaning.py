"""Answers that are meaning representations, `function(attribute[value, value], attribute[])`.

A value is any text without brackets and line breaks: none of ViGGO's 6,900 rows has either inside one, while
commas, parentheses, colons and apostrophes are common. A name (`priceRange`, `customer rating`) has no commas
either, begins and ends with a visible character, and a function's name has no parentheses. Attributes are
separated by a comma and one space. `Description` says which functions, attributes and values a task has.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import lark
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from tutorial import score
from tutorial.kind import Compared, Kind, part_metrics

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


PARSER = lark.Lark(SYNTAX, parser="lalr")
# Terminals of SYNTAX in words.
EXPECTED = {"FUNCTION": "a function", "LPAR": "'('", "ATTRIBUTE": "attribute[value]"}
EXPECTED |= {"RPAR": "', ' or ')'", "<END-OF-FILE>": "the end"}


def parse(text: str) -> Meaning:
    """Read one representation; white space around it is accepted.

    ValueError if it is none: one line with the column, counted from its first visible character.
    """
    text = text.strip()
    try:
        function, *attributes = map(str, PARSER.parse(text).children)
    except lark.UnexpectedInput as error:
        ended = getattr(getattr(error, "token", None), "type", None) == "$END"
        allowed = error.allowed if isinstance(error, lark.UnexpectedCharacters) else error.expected
        expected = next(words for name, words in EXPECTED.items() if name in allowed)
        column = len(text) if ended else error.pos_in_stream
        found = repr(text[column : column + 30]) if text[column:] else "the end"
        raise ValueError(f"column {column + 1}: {expected} expected, not {found}") from None
    return Meaning(function, tuple(tuple(each[:-1].split("[")) for each in attributes))


def render(meaning: Meaning) -> str:
    """The representation as text: what `parse` read, less white space around it."""
    return f"{meaning.function}({', '.join(f'{name}[{value}]' for name, value in meaning.attributes)})"


def check(meaning: Meaning, description: Description) -> None:
    """ValueError if a task cannot have this meaning; any of its attributes may have no value.

    It may have no function, attribute or value that the description lacks, no free value longer than its
    `longest`, and no attribute twice.
    """
    if meaning.function not in description.functions:
        raise ValueError(f"unknown function {meaning.function!r}")
    times = Counter(name for name, _ in meaning.attributes)
    for name, value in meaning.attributes:
        allowed = description.attributes.get(name)
        if allowed is None:
            raise ValueError(f"unknown attribute {name!r}")
        if times[name] > 1:
            raise ValueError(f"attribute {name!r} is given twice")
        if value and isinstance(allowed, list) and value not in allowed:
            raise ValueError(f"attribute {name!r} cannot be {value!r}, only one of {', '.join(allowed)}")
        if not isinstance(allowed, list) and len(value) > description.longest:
            size = f"{len(value)} characters, meaning.longest is {description.longest}"
            raise ValueError(f"attribute {name!r} has {size}")


def canonical(meaning: Meaning, description: Description) -> Meaning:
    """The same meaning with its attributes in order of name, and a list attribute's values in order."""
    ordered = (
        (name, ", ".join(sorted(value.split(", "))) if description.attributes.get(name) == "list" else value)
        for name, value in meaning.attributes
    )
    return Meaning(meaning.function, tuple(sorted(ordered)))


def grammar(description: Description) -> str:
    """The task's representations as a GBNF grammar (llama.cpp's notation, which xgrammar reads).

    It allows what `check` allows, and an attribute that comes twice: against that it would have to list every
    order of the attributes.
    """

    def one_of(literals: list[str]) -> str:
        return " | ".join(json.dumps(each, ensure_ascii=False) for each in literals)  # GBNF escapes as JSON

    attributes = []
    for name, allowed in description.attributes.items():
        value = f"({one_of(allowed)})" if isinstance(allowed, list) else "text"
        attributes.append(f'{one_of([f"{name}["])} {value}? "]"')
    return f"""root ::= function "(" attribute (", " attribute)* ")"
function ::= {one_of(description.functions)}
attribute ::= {" | ".join(attributes)}
text ::= {VALUE}{{1,{description.longest}}}"""


class Meanings(Kind):
    """Meanings that a description allows. Rows with one target are sentences of one meaning, which may be
    answered right or wrong together: intervals count meanings, not rows."""

    name, unit, part, nothing, strict = "meaning", "meanings", "attribute", Meaning("", ()), True
    metrics: ClassVar = {
        "exact match": lambda row: row.right,
        "canonical match": lambda row: row.said == row.meant,  # the order of attributes and lists aside
        "function accuracy": lambda row: row.said.function == row.meant.function,
        **part_metrics("attribute"),
    }
    mistaken: ClassVar = {
        "does not parse": lambda row: not row.parses,
        "wrong function": lambda row: row.said.function != row.meant.function,
        "missing attribute": Compared.missing,
        "invented attribute": Compared.invented,  # or said twice
        "wrong value": lambda row: row.said != row.meant,
        "order only": lambda row: True,
    }
    shown = ("exact match", "canonical match", "attribute F1", "valid answers")

    def __init__(self, description: Description):
        self.description = description
        self.guide = {"structured_outputs": {"grammar": grammar(description)}}

    def read(self, text: str) -> tuple[Meaning, tuple[tuple[str, str], ...]]:
        """The canonical meaning, and its attributes."""
        meaning = canonical(parse(text), self.description)
        return meaning, meaning.attributes

    def check(self, said: Meaning) -> None:
        """See `meaning.check`."""
        check(said, self.description)

    def listed(self, rows: list[Compared]) -> list[str]:
        """All attributes of the description."""
        return list(self.description.attributes)

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """`by_function` of the targets too: rows, exact match, low, high, meanings."""
        rows, found = score.compare(answers, targets, self), {}
        for name, count in Counter(sorted(row.meant.function for row in rows)).most_common():
            part = [row for row in rows if row.meant.function == name]
            found[name] = (count, *score.share([row.right for row in part], [row.target for row in part]))
        columns = ["rows", "exact match", "low", "high", "meanings"]
        table = pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("function")
        return {"by_function": table} | super().views(answers, targets)
