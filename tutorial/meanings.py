"""Answers that are meaning representations: their scores, by function and by attribute too."""

from collections import Counter
from contextlib import suppress

import pandas as pd

from tutorial import score
from tutorial.meaning import Description, Meaning, canonical, check, grammar, parse
from tutorial.score import Compared, Kind, names

NOTHING = Meaning("", ())
METRICS = {
    "exact match": lambda row: row.answer == row.target,
    "canonical match": lambda row: row.said == row.meant,  # the order of attributes and lists aside
    "function accuracy": lambda row: row.said.function == row.meant.function,
    "attribute precision": lambda row: (row.hits(), len(row.said.attributes)),
    "attribute recall": lambda row: (row.hits(), len(row.meant.attributes)),
    "attribute F1": lambda row: (2 * row.hits(), len(row.said.attributes + row.meant.attributes)),
    "answers that parse": lambda row: row.said != NOTHING,
    "valid answers": lambda row: row.valid,
}
KINDS = {
    "does not parse": lambda row: row.said == NOTHING,
    "wrong function": lambda row: row.said.function != row.meant.function,
    "missing attribute": lambda row: names(row.meant_parts) - names(row.said_parts),
    "invented attribute": lambda row: names(row.said_parts) - names(row.meant_parts),  # or said twice
    "wrong value": lambda row: row.said != row.meant,
    "order only": lambda row: True,
}


class Meanings(Kind):
    """Meanings that a description allows. Rows with one target are sentences of one meaning, which may be
    answered right or wrong together: intervals count meanings, not rows."""

    name, unit = "meaning", "meanings"
    metrics, mistaken = METRICS, KINDS
    shown = ("exact match", "canonical match", "attribute F1", "valid answers")

    def __init__(self, description: Description):
        self.description = description
        self.guide = {"structured_outputs": {"grammar": grammar(description)}}

    def compare(self, answer: str, target: str) -> Compared:
        """Both meanings are canonical; what cannot be read is `NOTHING`."""
        row = Compared(answer, target, NOTHING, NOTHING)
        try:
            row.meant = canonical(parse(target), self.description)
            check(row.meant, self.description)
        except ValueError as error:
            raise ValueError(f"target {target!r}: {error}") from None
        with suppress(ValueError):
            row.said = canonical(parse(answer), self.description)
            check(row.said, self.description)
            row.valid = True
        row.said_parts, row.meant_parts = Counter(row.said.attributes), Counter(row.meant.attributes)
        return row

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """`by_function` (of the targets: rows, exact match, low, high, meanings), `by_attribute` (support,
        precision, recall, F1)."""
        rows, parts = score.compare(answers, targets, self), {}
        for row in rows:
            parts.setdefault(row.meant.function, []).append(row)
        found = {}
        for name, part in sorted(parts.items(), key=lambda each: -len(each[1])):
            right, units = [row.answer == row.target for row in part], [row.target for row in part]
            found[name] = (len(part), *score.intervals.share(right, units))
        columns = ["rows", "exact match", "low", "high", "meanings"]
        functions = pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("function")
        attributes = score.by_part(rows, list(self.description.attributes)).rename_axis("attribute")
        return {"by_function": functions, "by_attribute": attributes}
