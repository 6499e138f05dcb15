"""How good the answers are.

An answer that is empty, cut off, repeats itself or holds two representations is scored, as a wrong one.
The sentences of one meaning (three in ViGGO) are not independent, so every interval is a 95% percentile
bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) that draws meanings,
the groups of rows with one target, with replacement, and never single rows.

Every function raises ValueError where there is not one answer a target or none at all, and, given a
description, for a target that it refuses.
"""

import difflib
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from tutorial.meaning import Description, Meaning, canonical, check, parse

METRICS = {  # each is the sum of one column of `_compared` over the sum of another
    "exact match": ("exact", "rows"),
    "canonical match": ("same", "rows"),
    "function accuracy": ("function", "rows"),
    "attribute precision": ("hits", "said"),
    "attribute recall": ("hits", "meant"),
    "attribute F1": ("twice hits", "said and meant"),
    "answers that parse": ("parses", "rows"),
}
KINDS = (  # the first that fits is an answer's
    "does not parse, wrong function, missing attribute, invented attribute, wrong value, order only"
).split(", ")
PLAIN = "wrong answer"  # the one kind of a task without a description
TOKEN = re.compile(r"\w+\[[^\[\]]*\]|\w+|\s+|.", re.DOTALL)  # `name[Portal 2]` is one


def exact_match(answers: list[str], targets: list[str]) -> float:
    """Strict exact match: the share of answers, from 0 to 1, equal to their target but for white space
    around them. Order of attributes, spelling and case count.

    Raises:
        ValueError: not one answer a target, or none at all.
    """
    return sum(a == t for a, t in _pairs(answers, targets)) / len(targets)


def scores(
    answers: list[str],
    targets: list[str],
    description: Description | None,
    seed: int = 0,
    resamples: int = 2000,
) -> pd.DataFrame:
    """A metric a row, each from 0 to 1: columns value, low, high. Without a description, exact match alone.

    Canonical match overlooks the order of attributes and of a list's values. Attribute metrics are
    micro-averages; an attribute is right where the target has it with the same canonical value. An answer
    that does not parse, or that the description refuses, scores 0 and misses all of its target's
    attributes. A ratio over nothing is 0.
    """
    metrics = ["exact match"] if description is None else list(METRICS)
    return _intervals(_compared(answers, targets, description), metrics, seed, resamples)


def by_function(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """Strict exact match for each function of the targets: columns rows, exact match, low, high.

    Without a description there is one row, for all of them.
    """
    table = _compared(answers, targets)
    functions = table["target"].str.partition("(")[0] if description else pd.Series("all", index=table.index)
    found = []
    for function, part in table.groupby(functions):
        [interval] = _intervals(part, ["exact match"]).to_numpy()
        found.append((function, len(part), *interval))
    columns = ["function", "rows", "exact match", "low", "high"]
    result = pd.DataFrame(found, columns=columns).set_index("function")
    return result.sort_values("rows", ascending=False, kind="stable")


def by_attribute(answers: list[str], targets: list[str], description: Description) -> pd.DataFrame:
    """For each attribute described: columns support (targets that have it), precision, recall, F1."""
    table, said, meant, hits = _compared(answers, targets, description), Counter(), Counter(), Counter()
    for values, wanted in zip(table["values"], table["wanted"], strict=True):
        said.update(values.keys())
        meant.update(wanted.keys())
        hits.update(name for name, _ in values.items() & wanted.items())
    names = pd.Index(description.attributes, name="attribute")
    said, meant, hits = (np.array([count[name] for name in names]) for count in (said, meant, hits))
    columns = {
        "support": meant,
        "precision": _ratio(hits, said),
        "recall": _ratio(hits, meant),
        "F1": _ratio(2 * hits, said + meant),
    }
    return pd.DataFrame(columns, index=names)


def errors(answers: list[str], targets: list[str], description: Description | None) -> pd.Series:
    """How many wrong answers (no exact match) are of each of `KINDS`; of several the first one counts.

    Without a description all are of one kind, `wrong answer`.
    """
    kinds = _compared(answers, targets, description)["kind"]
    index = pd.Index(KINDS if description else [PLAIN], name="kind")
    return kinds.value_counts().reindex(index, fill_value=0).rename("answers")


def telling(
    inputs: list[str],
    answers: list[str],
    targets: list[str],
    description: Description | None,
    count: int = 10,
) -> pd.DataFrame:
    """The most telling wrong answers: columns kind, input, target, answer.

    The kinds take turns, the most frequent first; within a kind the shortest target comes first. What
    differs between target and answer is bold, in Markdown.
    """
    table = _compared(answers, targets, description)
    if len(inputs) != len(table):
        raise ValueError(f"{len(inputs)} inputs for {len(table)} targets")
    counts = Counter(table["kind"])
    ranks = {kind: rank for rank, kind in enumerate(sorted((*KINDS, PLAIN), key=lambda kind: -counts[kind]))}
    table = table.assign(input=inputs, rank=table["kind"].map(ranks)).dropna(subset="kind")
    table = table.sort_values("target", key=lambda text: text.str.len(), kind="stable")
    table = table.assign(turn=table.groupby("kind").cumcount())
    found = []
    for row in table.sort_values(["turn", "rank"]).head(count).itertuples():
        found.append((row.kind, row.input, *_bold(row.target, row.answer)))
    return pd.DataFrame(found, columns=["kind", "input", "target", "answer"], dtype=object)


def _pairs(answers: list[str], targets: list[str]) -> list[tuple[str, str]]:
    if len(answers) != len(targets) or not targets:
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    return [(a.strip(), t.strip()) for a, t in zip(answers, targets, strict=True)]


def _compared(answers: list[str], targets: list[str], description: Description | None = None) -> pd.DataFrame:
    """A pair a row: columns answer, target, exact, rows; with a description also those of `_compare`."""
    pairs = _pairs(answers, targets)
    table = pd.DataFrame(pairs, columns=["answer", "target"], dtype=object)  # any str, surrogates too
    table = table.assign(exact=table["answer"] == table["target"], rows=1)
    if description is None:
        return table.assign(kind=pd.Series(PLAIN, index=table.index).mask(table["exact"]))
    # Each text is read once, and each pair compared once: a split repeats both.
    read = {target: _read(target, description, strict=True) for target in table["target"].unique()}
    read |= {answer: _read(answer, description) for answer in table["answer"].unique() if answer not in read}
    found = {(answer, target): _compare(read[answer], read[target]) for answer, target in set(pairs)}
    table = table.join(pd.DataFrame([found[pair] for pair in pairs]))
    return table.assign(kind=table["kind"].mask(table["exact"]))


def _read(text: str, description: Description, strict: bool = False) -> Meaning | None:
    """The canonical meaning; None, or if strict an error, where it does not parse or the task lacks it."""
    try:
        meaning = parse(text)
        check(meaning, description)
    except ValueError as error:
        if strict:
            raise ValueError(f"target {text!r}: {error}") from None
        return None
    return canonical(meaning, description)


def _compare(answer: Meaning | None, target: Meaning) -> dict[str, Any]:
    """What `METRICS` sums, the kind of error if the answer is wrong, and both sides' attributes."""
    values, wanted = dict(answer.attributes) if answer else {}, dict(target.attributes)
    hits = len(values.items() & wanted.items())
    right = answer is not None and answer.function == target.function
    missing, invented = wanted.keys() - values.keys(), values.keys() - wanted.keys()
    # In the order of KINDS; the last one fits all that is left.
    signs = (answer is None, not right, missing, invented, answer != target, True)
    return {
        "same": answer == target,
        "function": right,
        "parses": answer is not None,
        "said": len(values),
        "meant": len(wanted),
        "said and meant": len(values) + len(wanted),
        "hits": hits,
        "twice hits": 2 * hits,
        "kind": next(kind for kind, sign in zip(KINDS, signs, strict=True) if sign),
        "values": values,
        "wanted": wanted,
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below != 0)


def _intervals(table: pd.DataFrame, metrics: list[str], seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Columns value, low and high of each metric, all from the same resamples of the meanings' sums."""
    columns = [METRICS[metric][part] for part in (0, 1) for metric in metrics]
    sums = table.groupby("target")[columns].sum().to_numpy(float)  # shape (meanings, 2 x metrics)
    rng, drawn = np.random.default_rng(seed), np.empty((resamples, len(columns)))
    for i in range(resamples):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        drawn[i] = times @ sums
    low, high = np.percentile(_ratio(*np.split(drawn, 2, axis=1)), [2.5, 97.5], axis=0)
    value = _ratio(*np.split(sums.sum(axis=0), 2))
    return pd.DataFrame({"value": value, "low": low, "high": high}, index=pd.Index(metrics, name="metric"))


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
