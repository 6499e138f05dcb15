"""How good the answers are, and what is wrong with the wrong ones.

Any answer is scored, even one that is empty, cut off or repeats itself. Rows with the same target are sentences
of one meaning. They may all be answered right or wrong together, so intervals count meanings and not rows.

Every function raises ValueError if there is not one answer for each target, or if the description refuses a target.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from scipy.stats import beta

from tutorial.meaning import Description, canonical, check, parse

FEW = 20  # meanings; an interval from fewer is marked where it is shown

METRICS = {  # of the columns of `compare`: one series is a share of the rows; of two, the sums are divided
    "exact match": lambda rows: [rows["exact"]],
    "canonical match": lambda rows: [rows["same_meaning"]],
    "function accuracy": lambda rows: [rows["same_function"]],
    "attribute precision": lambda rows: [rows["hits"].map(len), rows["given"].map(len)],
    "attribute recall": lambda rows: [rows["hits"].map(len), rows["wanted"].map(len)],
    "attribute F1": lambda rows: [2 * rows["hits"].map(len), (rows["given"] + rows["wanted"]).map(len)],
    "answers that parse": lambda rows: [rows["parses"]],
    "valid answers": lambda rows: [rows["valid"]],
}
KINDS = {  # of mistakes: the first one that fits a row of `compare`
    "does not parse": lambda row: not row.parses,
    "wrong function": lambda row: not row.same_function,
    "missing attribute": lambda row: _names(row.wanted) - _names(row.given),
    "invented attribute": lambda row: _names(row.given) - _names(row.wanted),
    "wrong value": lambda row: not row.same_meaning,
    "order only": lambda row: True,
}
PLAIN = "wrong answer"  # the one kind of mistake without a description


@dataclass
class Compared:
    """An answer beside its target. Attributes are (name, canonical value) pairs."""

    answer: str
    target: str
    exact: bool
    function: str | None = None  # of the target
    parses: bool = False  # the answer is one representation and nothing else
    valid: bool = False  # and the description allows it
    same_function: bool = False
    same_meaning: bool = False
    given: tuple = ()  # the answer's attributes
    wanted: tuple = ()  # the target's
    hits: tuple = ()  # those in both; one that is given twice is right once


def compare(answers: list[str], targets: list[str], description: Description | None = None) -> pd.DataFrame:
    """One row for each pair, with the fields of `Compared`; without a description up to `exact`."""
    if len(answers) != len(targets) or not len(targets):
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    pairs = [(answer.strip(), target.strip()) for answer, target in zip(answers, targets, strict=True)]
    known = {pair: vars(_compared(*pair, description)) for pair in dict.fromkeys(pairs)}  # pairs are repeated
    return pd.DataFrame([known[pair] for pair in pairs], dtype=object)


def exact_match(answers: list[str], targets: list[str]) -> float:
    """The share of answers, from 0 to 1, that equal their target but for white space around them."""
    return float(compare(answers, targets)["exact"].mean())


def scores(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """One row for each metric, from 0 to 1: columns value, low, high, meanings. Without a description, exact match.

    Canonical match ignores the order of attributes and of a list's values. Attribute metrics are micro-averages; a
    ratio over nothing is 0. An answer that does not parse scores 0 and misses all of its target's attributes.
    low and high bound the 95% confidence interval of a share, and are NaN for precision, recall and F1, which are
    no shares of the rows. `meanings` is how many equally large groups of rows the interval counts (see `_share`).
    """
    rows = compare(answers, targets, description)
    metrics = METRICS if description else {"exact match": METRICS["exact match"]}
    found = {name: _score(rows, *metric(rows)) for name, metric in metrics.items()}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("metric")


def gain(answers: list[str], others: list[str], targets: list[str]) -> dict[str, float]:
    """How much more of `answers` than of `others` is an exact match, from -1 to 1: value, low, high, meanings.

    Both answer the same rows: the 95% interval is that of matched proportions (Agresti and Min 2005).
    """
    rows, other = compare(answers, targets), compare(others, targets)
    more, fewer = (rows["exact"] > other["exact"]).mean(), (rows["exact"] < other["exact"]).mean()
    n = _meanings(rows)
    middle = n * (more - fewer) / (n + 2)  # half an observation is added to each cell of the 2 x 2 table
    half = 1.96 * np.sqrt((n * (more + fewer) + 1) / (n + 2) - middle**2) / np.sqrt(n + 2)
    low, high = np.clip([middle - half, middle + half], -1, 1)
    return {"value": float(more - fewer), "low": float(low), "high": float(high), "meanings": n}


def by_function(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """Exact match for each function of the targets: columns rows, exact match, low, high, meanings. Without a
    description there are no functions, and no rows."""
    functions = compare(answers, targets, description).groupby("function")
    found = {name: {"rows": len(part)} | _score(part, part["exact"]) for name, part in functions}
    table = pd.DataFrame.from_dict(found, orient="index").rename(columns={"value": "exact match"})
    table = table.reindex(columns=["rows", "exact match", "low", "high", "meanings"]).rename_axis("function")
    return table.sort_values("rows", ascending=False, kind="stable")


def by_attribute(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """One row for each attribute of the description: columns support (of the targets), precision, recall, F1.
    Without a description there are no rows."""
    rows, names = compare(answers, targets, description), description.attributes if description else {}
    hits, given, wanted = (_names(chain.from_iterable(rows[side])) for side in ("hits", "given", "wanted"))
    found = {
        name: {"support": wanted[name]}
        | {"precision": _ratio(hits[name], given[name]), "recall": _ratio(hits[name], wanted[name])}
        | {"F1": _ratio(2 * hits[name], given[name] + wanted[name])}
        for name in names
    }
    columns = ["support", "precision", "recall", "F1"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("attribute")


def kinds(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """For each answer one of `KINDS`, None if it is an exact match. An attribute that is given twice, or that the
    description lacks, is invented. Without a description every mistake is a `wrong answer`."""
    rows = compare(answers, targets, description)
    fits = KINDS if description else {PLAIN: lambda row: True}
    found = [next(kind for kind, fit in fits.items() if fit(row)) for row in rows.itertuples()]
    return pd.Series(found, dtype=object).mask(rows["exact"].astype(bool), None)


def count_kinds(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """How many wrong answers are of each kind."""
    index = pd.Index(KINDS if description else [PLAIN], name="kind")
    found = kinds(answers, targets, description).value_counts()
    return found.reindex(index, fill_value=0).rename("answers")


def telling(
    inputs: list[str], answers: list[str], targets: list[str], description: Description | None, most: int = 10
) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer. The kinds take turns, the most frequent
    first; within a kind the shortest target comes first."""
    rows = compare(answers, targets)
    if len(inputs) != len(rows):
        raise ValueError(f"{len(inputs)} inputs for {len(rows)} targets")
    rows = rows.assign(kind=kinds(answers, targets, description), input=list(inputs)).dropna(subset="kind")
    rows = rows.sort_values("target", key=lambda text: text.str.len(), kind="stable")
    rows["turn"] = rows.groupby("kind").cumcount()
    rows["rank"] = -rows.groupby("kind")["kind"].transform("size")
    rows["order"] = rows["kind"].map([*KINDS, PLAIN].index)
    rows = rows.sort_values(["turn", "rank", "order"])
    return rows.head(most)[["kind", "input", "target", "answer"]].reset_index(drop=True)


def _compared(answer: str, target: str, description: Description | None) -> Compared:
    row = Compared(answer, target, answer == target)
    if description is None:
        return row
    try:
        check(parse(target), description)
    except ValueError as error:
        raise ValueError(f"target {target!r}: {error}") from None
    meant = canonical(parse(target), description)
    row.function, row.wanted = meant.function, meant.attributes
    try:
        said = parse(answer)
        row.parses = True
        check(said, description)
        row.valid = True
    except ValueError:
        if not row.parses:
            return row
    said = canonical(said, description)
    row.given, row.same_function, row.same_meaning = (
        said.attributes,
        said.function == meant.function,
        said == meant,
    )
    row.hits = tuple((Counter(row.given) & Counter(row.wanted)).elements())
    return row


def _names(attributes: Iterable[tuple[str, str]]) -> Counter:
    return Counter(name for name, _ in attributes)


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _meanings(rows: pd.DataFrame) -> float:
    """The effective number of meanings (Kish 1965): their count if all have equally many rows, else fewer."""
    sizes = rows.groupby("target").size()
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _score(rows: pd.DataFrame, above: pd.Series, below: pd.Series | None = None) -> dict[str, float]:
    """A ratio, or a share with its Clopper-Pearson interval over the effective number of meanings, which never
    covers less than it says (Korn and Graubard, Survey Methodology 24, 1998)."""
    n = _meanings(rows)
    if below is not None:
        return {"value": _ratio(above.sum(), below.sum()), "low": np.nan, "high": np.nan, "meanings": n}
    value = float(above.mean())
    low, high = beta.ppf([0.025, 0.975], [n * value, n * value + 1], [n - n * value + 1, n - n * value])
    return {
        "value": value,
        "low": np.nan_to_num(low, nan=0.0),
        "high": np.nan_to_num(high, nan=1.0),
        "meanings": n,
    }
