"""Answers that are JSON objects: valid ones, and how many of their fields are right."""

from collections import Counter
from contextlib import suppress
from typing import Any

import pandas as pd

from tutorial import schema, score
from tutorial.score import Compared, Kind, names

METRICS = {
    "exact match": lambda row: row.answer == row.target,
    "same object": lambda row: row.said == row.meant,  # the order of keys and white space aside
    "field precision": lambda row: (row.hits(), row.said_parts.total()),
    "field recall": lambda row: (row.hits(), row.meant_parts.total()),
    "field F1": lambda row: (2 * row.hits(), (row.said_parts + row.meant_parts).total()),
    "answers that parse": lambda row: row.said is not None,
    "valid answers": lambda row: row.valid,
}
KINDS = {
    "not a JSON object": lambda row: row.said is None,
    "missing field": lambda row: names(row.meant_parts) - names(row.said_parts),
    "invented field": lambda row: names(row.said_parts) - names(row.meant_parts),
    "wrong value": lambda row: row.said != row.meant,
    "same object": lambda row: True,
}


class Objects(Kind):
    """JSON objects of one schema. Intervals count distinct objects, as several questions may have one.

    A field is what `schema.leaves` yields. In a list its place does not count, except for the same object.
    """

    name, unit = "JSON", "objects"
    metrics, mistaken = METRICS, KINDS
    shown = ("exact match", "same object", "field precision", "field recall", "field F1", "valid answers")

    def __init__(self, found: dict[str, Any], separators: tuple[str, str]):
        self.schema = found
        self.guide = {"structured_outputs": {"grammar": schema.grammar(found, separators)}}

    def compare(self, answer: str, target: str) -> Compared:
        """Both objects as canonical text."""
        try:
            meant = schema.parse(target)
        except ValueError as error:
            raise ValueError(f"target {target!r}: {error}") from None
        row = Compared(answer, target, None, schema.canonical(meant))
        row.meant_parts = Counter(schema.leaves(meant))
        with suppress(ValueError):
            said = schema.parse(answer)
            row.said, row.said_parts = schema.canonical(said), Counter(schema.leaves(said))
            schema.check(said, self.schema)
            row.valid = True
        return row

    def units(self, targets: list[str], inputs: list[str] | None) -> list[str]:
        """The objects, however they are written."""
        return [schema.canonical(schema.parse(target)) for target in targets]

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """`by_field` of the targets: support, precision, recall, F1."""
        rows = score.compare(answers, targets, self)
        names = dict.fromkeys(name for row in rows for name, _ in row.meant_parts)
        return {"by_field": score.by_part(rows, list(names)).rename_axis("field")}
