"""How good the answers are, and what is wrong with the wrong ones.

Rows with one target are sentences of one meaning, which may be answered right or wrong together: intervals
count meanings, not rows. Every function raises ValueError if answers and targets differ in number, or if the
description refuses a target.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import beta

from tutorial.meaning import Description, Meaning, canonical, check, parse

FEW = 20  # meanings; an interval from fewer is shown with their number
NOTHING = Meaning("", ())


@dataclass
class Compared:
    """An answer beside its target, without white space around them. Both meanings are canonical."""

    answer: str
    target: str
    said: Meaning = NOTHING  # if the answer is one representation and nothing else
    meant: Meaning = NOTHING
    valid: bool = False  # the description allows what was said

    def hits(self) -> int:  # attributes that are right; one that is said twice is right once
        return (Counter(self.said.attributes) & Counter(self.meant.attributes)).total()


METRICS = {  # of a row: a bool makes a share of the rows, two counts make a ratio of their sums
    "exact match": lambda row: row.answer == row.target,
    "canonical match": lambda row: row.said == row.meant,
    "function accuracy": lambda row: row.said.function == row.meant.function,
    "attribute precision": lambda row: (row.hits(), len(row.said.attributes)),
    "attribute recall": lambda row: (row.hits(), len(row.meant.attributes)),
    "attribute F1": lambda row: (2 * row.hits(), len(row.said.attributes + row.meant.attributes)),
    "answers that parse": lambda row: row.said != NOTHING,
    "valid answers": lambda row: row.valid,
}
KINDS = {  # of mistakes: the first that fits a row
    "does not parse": lambda row: row.said == NOTHING,
    "wrong function": lambda row: row.said.function != row.meant.function,
    "missing attribute": lambda row: _names(row.meant) - _names(row.said),
    "invented attribute": lambda row: _names(row.said) - _names(row.meant),  # or said twice
    "wrong value": lambda row: row.said != row.meant,
    "order only": lambda row: True,
}
PLAIN = {"wrong answer": lambda row: True}  # without a description


def compare(answers: list[str], targets: list[str], description: Description | None = None) -> list[Compared]:
    """One `Compared` for each pair; without a description only the texts are compared."""
    if len(answers) != len(targets) or not len(targets):
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    pairs = [(answer.strip(), target.strip()) for answer, target in zip(answers, targets, strict=True)]
    known = {pair: _compared(*pair, description) for pair in dict.fromkeys(pairs)}  # a split repeats pairs
    return [known[pair] for pair in pairs]


def exact_match(answers: list[str], targets: list[str]) -> float:
    """The share of answers, from 0 to 1, that equal their target."""
    return _score(compare(answers, targets), "exact match")["value"]


def scores(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """One row for each metric, 0 to 1; without a description, exact match alone. Canonical match ignores the
    order of attributes and of a list's values. Columns: value; low and high, the 95% interval; meanings, how
    many it counts. The last three are None for attribute metrics, which are micro-averages and no shares."""
    rows, names = compare(answers, targets, description), list(METRICS) if description else ["exact match"]
    found = [_score(rows, name) for name in names]
    return pd.DataFrame(found, index=pd.Index(names, name="metric"), dtype=object)


def gain(answers: list[str], others: list[str], targets: list[str]) -> dict[str, float]:
    """How much more of `answers` than of `others` is an exact match, -1 to 1: value, low, high, meanings. The
    interval joins those of the rows that only one of both has right (Zou and Donner, Stat. Med. 27, 2008)."""
    exact, rows = METRICS["exact match"], compare(answers, targets)
    right = [(exact(one), exact(other)) for one, other in zip(rows, compare(others, targets), strict=True)]
    more, less = _share(rows, [a > b for a, b in right]), _share(rows, [a < b for a, b in right])
    p, q = more["value"], less["value"]
    # No row is in both shares, so one is high if the other is low.
    tied = p * q and np.sqrt(p * q / ((1 - p) * (1 - q)))
    x, y = np.array([p - more["low"], more["high"] - p]), np.array([less["high"] - q, q - less["low"]])
    low, high = p - q + np.array([-1, 1]) * np.sqrt(x**2 + y**2 + 2 * tied * x * y)
    return {"value": p - q, "low": float(low), "high": float(high), "meanings": more["meanings"]}


def by_function(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """Exact match for each function of the targets: columns rows, exact match, low, high, meanings. Without a
    description there are no functions, and no rows."""
    rows = compare(answers, targets, description) if description else []
    parts = {}
    for row in rows:
        parts.setdefault(row.meant.function, []).append(row)
    parts = sorted(parts.items(), key=lambda part: -len(part[1]))
    found = {name: (len(part), *_score(part, "exact match").values()) for name, part in parts}
    columns = ["rows", "exact match", "low", "high", "meanings"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("function")


def by_attribute(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """For each attribute of the description: columns support (in targets), precision, recall, F1. Without
    a description there are no attributes, and no rows."""
    rows, found = compare(answers, targets, description), {}
    for name in description.attributes if description else ():
        part = [replace(row, said=_only(row.said, name), meant=_only(row.meant, name)) for row in rows]
        ratios = [_score(part, f"attribute {kind}")["value"] for kind in ("precision", "recall", "F1")]
        found[name] = (sum(len(row.meant.attributes) for row in part), *ratios)
    columns = ["support", "precision", "recall", "F1"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("attribute")


def kinds(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """For each answer its kind of mistake, one of `KINDS` or `PLAIN`; missing if it is an exact match."""
    fits, rows = KINDS if description else PLAIN, compare(answers, targets, description)
    found = [next(kind for kind, fit in fits.items() if fit(row)) for row in rows]
    wrong = [row.answer != row.target for row in rows]
    return pd.Series(found, dtype=pd.CategoricalDtype(list(fits)), name="kind").where(wrong)


def count_kinds(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """How many wrong answers are of each kind."""
    return kinds(answers, targets, description).value_counts(sort=False).rename("answers")


def report(answered: dict[str, pd.DataFrame], description: Description | None) -> dict[str, dict]:
    """All of this for systems that answered the same rows: tables with the columns answer and target."""
    texts = {name: (list(part["answer"]), list(part["target"])) for name, part in answered.items()}
    views = {"scores": scores, "by_function": by_function, "by_attribute": by_attribute}
    found = {
        view: {n: make(*pair, description).to_dict("index") for n, pair in texts.items()}
        for view, make in views.items()
    }
    found["mistakes"] = {name: count_kinds(*pair, description).to_dict() for name, pair in texts.items()}
    pairs = {f"{name} over {other}": (*texts[name], texts[other][0]) for other, name in pairwise(texts)}
    found["gains"] = {name: gain(ours, others, targets) for name, (ours, targets, others) in pairs.items()}
    return found


def telling(
    inputs: list[str], answers: list[str], targets: list[str], description: Description | None, most: int = 10
) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer. The kinds take turns, the most
    frequent first; within a kind the shortest target comes first."""
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs for {len(targets)} targets")
    columns = {"input": inputs, "target": targets, "answer": answers}
    table = pd.DataFrame({name: pd.Series(list(texts), dtype=object) for name, texts in columns.items()})
    table.insert(0, "kind", kinds(answers, targets, description))
    table = table.dropna(subset="kind").sort_values("target", key=lambda text: text.str.len(), kind="stable")
    kind = table.groupby("kind", observed=True)["kind"]
    order = np.lexsort([table["kind"].cat.codes, -kind.transform("size"), kind.cumcount()])  # the last first
    return table.iloc[order].head(most).astype(object).reset_index(drop=True)


def of(part: pd.DataFrame, description: Description | None) -> pd.DataFrame:
    """`scores` of one system's answers: a table with the columns answer and target."""
    return scores(list(part["answer"]), list(part["target"]), description)


def mistakes(part: pd.DataFrame, description: Description | None, most: int = 10) -> pd.DataFrame:
    """`telling` of one system's answers: a table with the columns input, answer and target."""
    texts = (list(part[column]) for column in ("input", "answer", "target"))
    return telling(*texts, description, most)


def _compared(answer: str, target: str, description: Description | None) -> Compared:
    row = Compared(answer, target)
    if description is None:
        return row
    try:
        row.meant = canonical(parse(target), description)
        check(row.meant, description)
    except ValueError as error:
        raise ValueError(f"target {target!r}: {error}") from None
    with suppress(ValueError):
        row.said = canonical(parse(answer), description)
        check(row.said, description)
        row.valid = True
    return row


def _names(meaning: Meaning) -> Counter:
    return Counter(name for name, _ in meaning.attributes)


def _only(meaning: Meaning, name: str) -> Meaning:
    return replace(meaning, attributes=tuple(pair for pair in meaning.attributes if pair[0] == name))


def _score(rows: list[Compared], metric: str) -> dict[str, float | None]:
    if not isinstance((found := [METRICS[metric](row) for row in rows])[0], tuple):
        return _share(rows, found)
    above, below = map(sum, zip(*found, strict=True))
    return {"value": above / below if below else 0.0, "low": None, "high": None, "meanings": None}


def _share(rows: list[Compared], right: list[bool]) -> dict[str, float]:
    """With its Clopper-Pearson interval, of the effective number of meanings (Korn and Graubard 1998)."""
    sizes = Counter(row.target for row in rows).values()
    value, n = sum(right) / len(right), len(rows) ** 2 / sum(size**2 for size in sizes)
    low = beta.ppf(0.025, n * value, n - n * value + 1) if value else 0.0
    high = beta.ppf(0.975, n * value + 1, n - n * value) if value < 1 else 1.0
    return {"value": value, "low": float(low), "high": float(high), "meanings": n}
