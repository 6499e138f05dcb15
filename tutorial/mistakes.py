"""What is wrong with the wrong answers: how many of each kind, and the ones worth reading."""

import difflib
import re
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
TOKEN = re.compile(r"\w+\[[^\[\]]*\]|\w+|\s+|.", re.DOTALL)  # `name[Portal 2]` is one


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

    The kinds take turns, the most frequent first; within a kind the shortest target comes first. What
    differs between target and answer is bold, in Markdown.
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
    found = []
    for row in table.sort_values(["turn", "rank"]).head(most).itertuples():
        found.append((row.kind, row.input, *_bold(row.target, row.answer)))
    return pd.DataFrame(found, columns=["kind", "input", "target", "answer"], dtype=object)


def _kind(row: tuple) -> str:
    given, wanted = (Counter(name for name, _ in side) for side in (row.given, row.wanted))
    # In the order of KINDS; the last one fits all that is left.
    signs = (not row.parses, not row.function, wanted - given, given - wanted, not row.same, True)
    return next(kind for kind, sign in zip(KINDS, signs, strict=True) if sign)


def _bold(*sides: str) -> list[str]:
    """Target and answer, what differs between them in bold; separators around it stay plain."""
    marked, tokens = ["", ""], [TOKEN.findall(side) for side in sides]
    for tag, *ends in difflib.SequenceMatcher(", ".__contains__, *tokens, autojunk=False).get_opcodes():
        for side, (start, end) in enumerate((ends[:2], ends[2:])):
            text = "".join(tokens[side][start:end])
            if tag != "equal":
                text = re.sub(r"[^,\s](?:.*[^,\s])?", r"**\g<0>**", text, count=1, flags=re.DOTALL)
            marked[side] += text
    return marked
