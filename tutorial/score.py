"""How good the answers are, and what is wrong with the wrong ones.

A `Kind` says what an answer is and what is measured of it; this room counts. Every function raises ValueError
if answers and targets differ in number, or if the kind refuses a target.

A 95% interval is about independent draws. Rows with one target are often one thing said in several ways, and
are answered right or wrong together: by default targets are counted, not rows.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tutorial import intervals


@dataclass
class Compared:
    """An answer beside its target, without white space around them, and what a kind reads in both."""

    answer: str
    target: str
    said: Any = None  # None if the answer cannot be read
    meant: Any = None
    said_parts: Counter = field(default_factory=Counter)  # of (name, value): attributes, fields, words
    meant_parts: Counter = field(default_factory=Counter)
    valid: bool = False  # the task allows what was said

    def hits(self) -> int:  # parts that are right; one that is said twice is right once
        return (self.said_parts & self.meant_parts).total()


# Of a row. A bool makes a share, a float a mean, and two counts a ratio of their sums.
Metric = Callable[[Compared], bool | float | tuple[int, int]]


class Kind:
    """What an answer is. A subclass sets what differs."""

    name: ClassVar[str]
    unit: ClassVar[str] = "targets"  # what an interval counts
    metrics: ClassVar[dict[str, Metric]]  # the first one is the exact match
    shown: ClassVar[tuple[str, ...]]  # of the metrics: those in the notebook's table
    mistaken: ClassVar[dict[str, Callable[[Compared], Any]]]  # kinds of mistakes: the first that fits a row
    guide: ClassVar[dict[str, Any]] = {}  # for vLLM's sampling parameters, and for `extra_body` of a request

    def compare(self, answer: str, target: str) -> Compared:
        """Both, read. Raises ValueError if the task does not allow the target."""
        return Compared(answer, target)

    def units(self, targets: list[str], inputs: list[str] | None) -> list[str]:
        """Of each row what it counts as in an interval."""
        return [target.strip() for target in targets]

    def overall(self, rows: list[Compared]) -> dict[str, float]:
        """Metrics of all rows together that no row has by itself."""
        return {}

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """Further tables for results.json."""
        return {}

    def picture(self, part: pd.DataFrame) -> Any:
        """A picture of one system's answers, or None."""

    def scores(self, answered: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """One row for each system, its metrics as texts, shares with their 95% intervals.

        Args:
            answered: each system's answers to the same rows, in columns input, answer, target.
        """

        def text(value: float, low: float | None, high: float | None, count: float | None) -> str:
            few = f"; {count:.0f} {self.unit}" if count and count < intervals.FEW else ""
            return f"{value:.3f}" + (f" ({low:.2f} to {high:.2f}{few})" if count else "")

        found = {name: scores(*_texts(part), self, list(part["input"])) for name, part in answered.items()}
        rows = {name: {each: text(*table.loc[each]) for each in self.shown} for name, table in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")

    def mistakes(self, part: pd.DataFrame, most: int = 5) -> pd.DataFrame:
        """The most telling wrong answers of one system; see `telling`."""
        return telling(list(part["input"]), *_texts(part), self, most)

    def report(self, answered: dict[str, pd.DataFrame]) -> dict[str, Any]:
        """Everything that is measured, for results.json; `answered` as for `scores`."""
        inputs = list(next(iter(answered.values()))["input"])
        texts = {name: _texts(part) for name, part in answered.items()}
        found = {"kind": self.name}
        for name, pair in texts.items():
            for view, made in {"scores": scores(*pair, self, inputs), **self.views(*pair)}.items():
                found.setdefault(view, {})[name] = made.to_dict("index")
        found["mistakes"] = {name: count_kinds(*pair, self).to_dict() for name, pair in texts.items()}
        pairs = {f"{name} over {other}": (texts[name], texts[other][0]) for other, name in pairwise(texts)}
        found["gains"] = {
            name: gain(ours, theirs, targets, self, inputs)
            for name, ((ours, targets), theirs) in pairs.items()
        }
        return found


def compare(answers: list[str], targets: list[str], kind: Kind) -> list[Compared]:
    """One `Compared` for each pair."""
    if len(answers) != len(targets) or not len(targets):
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    pairs = [(answer.strip(), target.strip()) for answer, target in zip(answers, targets, strict=True)]
    known = {pair: kind.compare(*pair) for pair in dict.fromkeys(pairs)}  # a split repeats pairs
    return [known[pair] for pair in pairs]


def exact_match(answers: list[str], targets: list[str]) -> float:
    """The share of answers, from 0 to 1, that equal their target but for white space around both."""
    return float(np.mean([row.answer == row.target for row in compare(answers, targets, Kind())]))


def scores(
    answers: list[str], targets: list[str], kind: Kind, inputs: list[str] | None = None
) -> pd.DataFrame:
    """One row for each metric, 0 to 1. Columns: value; low and high, the 95% interval; the kind's unit, how
    many of it the interval counts. The last three are None for a metric that is not a share of the rows."""
    rows, units, found = compare(answers, targets, kind), kind.units(targets, inputs), {}
    for name, metric in kind.metrics.items():
        values = [metric(row) for row in rows]
        if isinstance(values[0], bool):
            found[name] = intervals.share(values, units)
        else:
            above, below = map(
                sum, zip(*((v, 1) if isinstance(v, float) else v for v in values), strict=True)
            )
            found[name] = (above / below if below else 0.0, None, None, None)
    found |= {name: (value, None, None, None) for name, value in kind.overall(rows).items()}
    columns = ["value", "low", "high", kind.unit]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns, dtype=object).rename_axis("metric")


def gain(
    answers: list[str], others: list[str], targets: list[str], kind: Kind, inputs: list[str] | None = None
) -> dict[str, float]:
    """How much more of `answers` than of `others` is an exact match, -1 to 1: value, low, high, the unit."""
    right = [[row.answer == row.target for row in compare(said, targets, kind)] for said in (answers, others)]
    found = intervals.gain(*right, kind.units(targets, inputs))
    return dict(zip(("value", "low", "high", kind.unit), found, strict=True))


def names(parts: Counter) -> Counter:
    """How many parts have each name."""
    found = Counter()
    for (name, _), count in parts.items():
        found[name] += count
    return found


def by_part(rows: list[Compared], listed: list[str]) -> pd.DataFrame:
    """For each listed name of a part: columns support (in targets), precision, recall, F1."""
    said = sum((names(row.said_parts) for row in rows), Counter())
    meant = sum((names(row.meant_parts) for row in rows), Counter())
    hits = sum((names(row.said_parts & row.meant_parts) for row in rows), Counter())
    found = {}
    for name in listed:
        totals = (said[name], meant[name], (said[name] + meant[name]) / 2)  # of precision, recall, F1
        found[name] = (meant[name], *(hits[name] / total if total else 0.0 for total in totals))
    return pd.DataFrame.from_dict(found, orient="index", columns=["support", "precision", "recall", "F1"])


def kinds(answers: list[str], targets: list[str], kind: Kind) -> pd.Series:
    """For each answer its kind of mistake, one of `kind.mistaken`; missing if it is an exact match."""
    rows = compare(answers, targets, kind)
    found = [next(name for name, fits in kind.mistaken.items() if fits(row)) for row in rows]
    wrong = [row.answer != row.target for row in rows]
    return pd.Series(found, dtype=pd.CategoricalDtype(list(kind.mistaken)), name="kind").where(wrong)


def count_kinds(answers: list[str], targets: list[str], kind: Kind) -> pd.Series:
    """How many wrong answers are of each kind."""
    return kinds(answers, targets, kind).value_counts(sort=False).rename("answers")


def telling(
    inputs: list[str], answers: list[str], targets: list[str], kind: Kind, most: int = 10
) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer. The kinds take turns, the most
    frequent first; within a kind the shortest target comes first."""
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs for {len(targets)} targets")
    texts = {"input": inputs, "target": targets, "answer": answers}
    columns = {name: pd.Series(list(each), dtype=object) for name, each in texts.items()}
    table = pd.DataFrame({"kind": kinds(answers, targets, kind)} | columns)
    table = table.dropna(subset="kind").sort_values("target", key=lambda text: text.str.len(), kind="stable")
    group = table.groupby("kind", observed=True)["kind"]
    order = np.lexsort([table["kind"].cat.codes, -group.transform("size"), group.cumcount()])  # last first
    return table.iloc[order].head(most).astype(object).reset_index(drop=True)


def _texts(part: pd.DataFrame) -> tuple[list[str], list[str]]:
    return list(part["answer"]), list(part["target"])
