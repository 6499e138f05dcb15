"""What is wrong with the wrong answers: how many of each kind, and the ones worth reading."""

from collections import Counter

import pandas as pd

from tutorial.meaning import Description
from tutorial.score import compare

KINDS = (  # the first that fits is an answer's
    "does not parse",
    "wrong function",
    "missing attribute",
    "invented attribute",
    "wrong value",
    "order only",
)
PLAIN = "wrong answer"  # the one kind of a task without a description


def kinds(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """For each answer one of `KINDS`, None where it equals its target. An attribute that is said twice, or
    that the task does not know, is invented.

    Raises:
        ValueError: as of `score.compare`.
    """
    table = compare(answers, targets, description)
    if description is None:
        found = pd.Series(PLAIN, index=table.index, dtype=object)
    else:
        found = pd.Series([_kind(row) for row in table.itertuples()], index=table.index, dtype=object)
    return found.mask(table["exact"], None)


def count(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """How many wrong answers are of each of `KINDS`; without a description all are a `wrong answer`."""
    index = pd.Index(KINDS if description else [PLAIN], name="kind")
    found = kinds(answers, targets, description).value_counts()
    return found.reindex(index, fill_value=0).rename("answers")


def telling(
    inputs: list[str],
    answers: list[str],
    targets: list[str],
    description: Description | None,
    most: int = 10,
) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer.

    The kinds take turns, the most frequent first; within a kind the shortest target comes first.
    """
    table = compare(answers, targets)
    if len(inputs) != len(table):
        raise ValueError(f"{len(inputs)} inputs for {len(table)} targets")
    table["kind"] = kinds(answers, targets, description)
    table["input"] = inputs
    table = table.dropna(subset="kind").sort_values("target", key=lambda t: t.str.len(), kind="stable")
    counts = Counter(table["kind"])
    ranked = sorted(counts, key=lambda kind: (-counts[kind], (*KINDS, PLAIN).index(kind)))
    table["turn"] = table.groupby("kind").cumcount()
    table["rank"] = table["kind"].map(ranked.index)
    columns = ["kind", "input", "target", "answer"]
    return table.sort_values(["turn", "rank"]).head(most)[columns].reset_index(drop=True)


def _kind(row: tuple) -> str:
    given, wanted = (Counter(name for name, _ in side) for side in (row.given, row.wanted))
    # In the order of KINDS; the last one fits all that is left.
    signs = (not row.parses, not row.function, wanted - given, given - wanted, not row.same, True)
    return next(kind for kind, sign in zip(KINDS, signs, strict=True) if sign)
