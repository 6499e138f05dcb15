"""How good the answers are, how sure that is, and what is wrong with the wrong ones.

A `kind.Kind` says what an answer is and what is measured of it; this room counts. Every function raises
ValueError if answers and targets differ in number, or if the kind refuses a target.

A 95% interval is about independent draws. Rows with one target are often one thing said in several ways, and
are answered right or wrong together. Such rows are one unit, and an interval counts units, not rows.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import beta

FEW = 20  # units; an interval from fewer is shown with their number


def share(right: list[bool], units: list[str]) -> tuple[float, float, float, float]:
    """The share of rows, the low and high end of its interval, and the number of units that it counts.

    The interval is Clopper and Pearson's, of the effective number of units (Korn and Graubard 1998).
    """
    sizes = Counter(units).values()
    value, n = sum(right) / len(right), len(units) ** 2 / sum(size**2 for size in sizes)
    low = beta.ppf(0.025, n * value, n - n * value + 1) if value else 0.0
    high = beta.ppf(0.975, n * value + 1, n - n * value) if value < 1 else 1.0
    return value, float(low), float(high), n


def difference(right: list[bool], others: list[bool], units: list[str]) -> tuple[float, float, float, float]:
    """As `share`: by how much the first share is higher, -1 to 1.

    The interval joins those of the rows that only one has right (Zou and Donner, Stat. Med. 27, 2008).
    """
    p, *more, count = share([a > b for a, b in zip(right, others, strict=True)], units)
    q, *less, _ = share([a < b for a, b in zip(right, others, strict=True)], units)
    # No row is in both shares, so one is high if the other is low.
    tied = p * q and np.sqrt(p * q / ((1 - p) * (1 - q)))
    x, y = np.array([p - more[0], more[1] - p]), np.array([less[1] - q, q - less[0]])
    low, high = p - q + np.array([-1, 1]) * np.sqrt(x**2 + y**2 + 2 * tied * x * y)
    return p - q, float(low), float(high), count


def stripped(answers: list[str], targets: list[str]) -> list[tuple[str, str]]:
    """Each answer and its target, without white space around them."""
    if len(answers) != len(targets) or not len(targets):
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    return [(answer.strip(), target.strip()) for answer, target in zip(answers, targets, strict=True)]


def exact_match(answers: list[str], targets: list[str]) -> float:
    """The share of answers, from 0 to 1, that equal their target but for white space around both."""
    return float(np.mean([answer == target for answer, target in stripped(answers, targets)]))


def compare(answers: list[str], targets: list[str], kind) -> list:
    """One `kind.Compared` for each pair."""
    pairs = stripped(answers, targets)
    known = {pair: kind.compare(*pair) for pair in dict.fromkeys(pairs)}  # a split repeats pairs
    return [known[pair] for pair in pairs]


def scores(answers: list[str], targets: list[str], kind, inputs: list[str] | None = None) -> pd.DataFrame:
    """One row for each metric, 0 to 1. Columns: value; low and high, the 95% interval; the kind's unit, how
    many of it the interval counts. The last three are None for a metric that is not a share of the rows."""
    rows, found = compare(answers, targets, kind), {}
    units = kind.units(rows, inputs)
    for name, metric in kind.metrics.items():
        values = [metric(row) for row in rows]
        if isinstance(values[0], bool):
            found[name] = share(values, units)
        else:
            above, below = map(sum, zip(*values, strict=True))
            found[name] = (above / below if below else 0.0, None, None, None)
    found |= {name: (value, None, None, None) for name, value in kind.overall(rows).items()}
    columns = ["value", "low", "high", kind.unit]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns, dtype=object).rename_axis("metric")


def gain(
    answers: list[str], others: list[str], targets: list[str], kind, inputs: list[str] | None = None
) -> dict[str, float]:
    """How much more of `answers` than of `others` is an exact match, -1 to 1: value, low, high, the unit."""
    ours, theirs = (compare(said, targets, kind) for said in (answers, others))
    right = ([row.right for row in rows] for rows in (ours, theirs))
    found = difference(*right, kind.units(ours, inputs))
    return dict(zip(("value", "low", "high", kind.unit), found, strict=True))


def names(parts: Counter) -> Counter:
    """How many parts, (name, value), have each name."""
    return Counter(name for name, _ in parts.elements())


def by_part(rows: list, listed: Iterable[str]) -> pd.DataFrame:
    """For each listed name of a part: columns support (in targets), precision, recall, F1."""
    said = sum((names(row.said_parts) for row in rows), Counter())
    meant = sum((names(row.meant_parts) for row in rows), Counter())
    hits = sum((names(row.said_parts & row.meant_parts) for row in rows), Counter())
    found = {}
    for name in listed:
        totals = (said[name], meant[name], (said[name] + meant[name]) / 2)  # of precision, recall, F1
        found[name] = (meant[name], *(hits[name] / total if total else 0.0 for total in totals))
    return pd.DataFrame.from_dict(found, orient="index", columns=["support", "precision", "recall", "F1"])


def kinds(answers: list[str], targets: list[str], kind) -> pd.Series:
    """For each answer its kind of mistake, one of `kind.mistaken`; missing if it is an exact match."""
    found = [
        None if row.right else next(name for name, fits in kind.mistaken.items() if fits(row))
        for row in compare(answers, targets, kind)
    ]
    return pd.Series(pd.Categorical(found, list(kind.mistaken)), name="kind")


def count_kinds(answers: list[str], targets: list[str], kind) -> pd.Series:
    """How many wrong answers are of each kind."""
    return kinds(answers, targets, kind).value_counts(sort=False).rename("answers")


def telling(inputs: list[str], answers: list[str], targets: list[str], kind, most: int = 10) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer. The kinds take turns, the most
    frequent first; within a kind the shortest target comes first."""
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs for {len(targets)} targets")
    found = kinds(answers, targets, kind)
    table = pd.DataFrame({"input": inputs, "target": targets, "answer": answers}, dtype=object)
    table.insert(0, "kind", found)
    table = table.dropna(subset="kind").sort_values("target", key=lambda text: text.str.len(), kind="stable")
    group = table.groupby("kind", observed=True)["kind"]
    order = np.lexsort([table["kind"].cat.codes, -group.transform("size"), group.cumcount()])  # last first
    return table.iloc[order].head(most).astype(object).reset_index(drop=True)
