"""What an answer is, and what is measured of it: `Kind`, of which each kind of answers is a subclass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import pandas as pd

from tutorial import score

DIFFERENT = 10_000  # answers of a data set that are kept in memory


@dataclass
class Compared:
    """An answer beside its target, without white space around them, and what a kind reads in both."""

    answer: str
    target: str
    said: Any  # `Kind.nothing` if the answer cannot be read
    meant: Any = None
    said_parts: Counter = field(default_factory=Counter)  # of (name, value): attributes, fields, words
    meant_parts: Counter = field(default_factory=Counter)
    parses: bool = False  # the answer can be read
    valid: bool = False  # the task allows what was said

    @property
    def right(self) -> bool:
        """Whether the answer is an exact match."""
        return self.answer == self.target

    def hits(self) -> int:
        """How many parts are right. One that is said twice is right as often as the target has it."""
        return (self.said_parts & self.meant_parts).total()

    def missing(self) -> Counter:
        """The names of parts that the answer lacks."""
        return score.names(self.meant_parts) - score.names(self.said_parts)

    def invented(self) -> Counter:
        """The names of parts that the target lacks, or has fewer times."""
        return score.names(self.said_parts) - score.names(self.meant_parts)


class Seen(Counter):
    """The different answers of rows, without white space around them, and how often each came. Only the first
    `DIFFERENT` are kept: it is for what has few, or is alike in all."""

    def through(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same rows, noted as they pass."""
        for row in rows:
            text = row["output"].strip()
            self.update([text] if text in self or len(self) < DIFFERENT else ())
            yield row


# Of a row. A bool makes a share of the rows, two numbers a ratio of their sums.
Metric = Callable[[Compared], bool | tuple[float, int]]


def part_metrics(part: str) -> dict[str, Metric]:
    """Metrics of answers that have parts: precision, recall and F1 over all rows, and what can be read."""
    return {
        f"{part} precision": lambda row: (row.hits(), row.said_parts.total()),
        f"{part} recall": lambda row: (row.hits(), row.meant_parts.total()),
        f"{part} F1": lambda row: (2 * row.hits(), row.said_parts.total() + row.meant_parts.total()),
        "answers that parse": lambda row: row.parses,
        "valid answers": lambda row: row.valid,
    }


class Kind:
    """What an answer is. A subclass sets what differs."""

    name: ClassVar[str]
    unit: ClassVar[str] = "targets"  # what an interval counts
    part: ClassVar[str] = ""  # what answers consist of, if `views` is to show it by name
    nothing: ClassVar[Any] = None  # what an answer says that cannot be read
    strict: ClassVar[bool] = False  # the task must allow targets too
    metrics: ClassVar[dict[str, Metric]]  # the first one is the exact match
    shown: ClassVar[tuple[str, ...]]  # of the metrics: those in the notebook's table
    mistaken: ClassVar[dict[str, Callable[[Compared], Any]]]  # kinds of mistakes: the first that fits a row
    guide: ClassVar[dict[str, Any]] = {}  # for vLLM's sampling parameters, and for `extra_body` of a request

    def read(self, text: str) -> tuple[Any, Iterable[tuple[str, str]]]:
        """What a text says, equal if texts say the same, and its parts; ValueError if it cannot be read."""
        raise NotImplementedError

    def check(self, said: Any) -> None:
        """ValueError if the task does not allow what was said."""

    def units(self, rows: list[Compared], inputs: list[str] | None) -> list[str]:
        """Of each row what it counts as in an interval."""
        return [row.target for row in rows]

    def overall(self, rows: list[Compared]) -> dict[str, float]:
        """Metrics of all rows together that no row has by itself."""
        return {}

    def listed(self, rows: list[Compared]) -> Iterable[str]:
        """The names of parts that `views` shows."""
        return dict.fromkeys(name for row in rows for name, _ in row.meant_parts)

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """Further tables for results.json: `by_` the part: support, precision, recall, F1 of each name."""
        if not self.part:
            return {}
        rows = score.compare(answers, targets, self)
        return {f"by_{self.part}": score.by_part(rows, self.listed(rows)).rename_axis(self.part)}

    def picture(self, part: pd.DataFrame) -> Any:
        """A picture of one system's answers, or None."""

    def compare(self, answer: str, target: str) -> Compared:
        """Both, read. ValueError if the target cannot be read or, if the kind is `strict`, is not allowed."""
        row = Compared(answer, target, self.nothing)
        try:
            row.meant, parts = self.read(target)
            if self.strict:
                self.check(row.meant)
        except ValueError as error:
            raise ValueError(f"target {target!r}: {error}") from None
        row.meant_parts = Counter(parts)
        with suppress(ValueError, RecursionError):  # the second: nested too deeply to be checked
            row.said, parts = self.read(answer)
            row.said_parts, row.parses = Counter(parts), True
            self.check(row.said)
            row.valid = True
        return row

    def scores(self, answered: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """One row for each system, its metrics as texts, shares with their 95% intervals.

        Of each system `answered` has the answers to the same rows: columns input, answer, target.
        """

        def text(value: float, low: float | None, high: float | None, count: float | None) -> str:
            few = f"; {count:.0f} {self.unit}" if count and count < score.FEW else ""
            return f"{value:.3f}" + (f" ({low:.2f} to {high:.2f}{few})" if count else "")

        rows = {}
        for name, part in answered.items():
            found = score.scores(*_texts(part), self, list(part["input"]))
            rows[name] = {metric: text(*found.loc[metric]) for metric in self.shown}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")

    def mistakes(self, part: pd.DataFrame, most: int = 5) -> pd.DataFrame:
        """The most telling wrong answers of one system; see `score.telling`."""
        return score.telling(list(part["input"]), *_texts(part), self, most)

    def report(self, answered: dict[str, pd.DataFrame]) -> dict[str, Any]:
        """Everything that is measured, for results.json; `answered` as for `scores`."""
        inputs = list(next(iter(answered.values()))["input"])
        texts, found = {name: _texts(part) for name, part in answered.items()}, {"kind": self.name}
        for name, pair in texts.items():
            for view, made in {"scores": score.scores(*pair, self, inputs), **self.views(*pair)}.items():
                found.setdefault(view, {})[name] = made.to_dict("index")
        found["mistakes"] = {name: score.count_kinds(*pair, self).to_dict() for name, pair in texts.items()}
        found["gains"] = {
            f"{name} over {other}": score.gain(texts[name][0], texts[other][0], texts[name][1], self, inputs)
            for other, name in pairwise(texts)
        }
        return found


def _texts(part: pd.DataFrame) -> tuple[list[str], list[str]]:
    return list(part["answer"]), list(part["target"])
