"""How good the answers are.

An answer that is empty, cut off, repeats itself or holds two representations is scored, never raised on.
The sentences of one meaning (three in ViGGO) are not independent, so every interval is a 95% percentile
bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) that draws meanings,
the groups of rows with one target, with replacement, and never single rows.

Every function raises ValueError where there is not one answer a target or none at all, and, given a
description, for a target that it refuses.
"""

from collections import Counter

import numpy as np
import pandas as pd

from tutorial.meaning import Description, Meaning, canonical, check, parse

METRICS = {  # each is the sum of one column of `compare` over the sum of another
    "exact match": ("exact", "rows"),
    "canonical match": ("same", "rows"),
    "function accuracy": ("function", "rows"),
    "attribute precision": ("hits", "said"),
    "attribute recall": ("hits", "meant"),
    "attribute F1": ("twice hits", "said and meant"),
    "answers that parse": ("parses", "rows"),
    "valid answers": ("valid", "rows"),
}


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
    micro-averages: an attribute is right where the target has it with the same canonical value, and one
    that is said twice is right once. An answer parses where it is one representation and nothing else; it
    is valid where the description allows it too. One that does not parse scores 0 and misses all of its
    target's attributes. A ratio over nothing is 0.
    """
    metrics = ["exact match"] if description is None else list(METRICS)
    sums = _resampled(compare(answers, targets, description), *_columns(metrics), seed, resamples)
    return pd.DataFrame(_intervals(*sums), index=pd.Index(metrics, name="metric"))


def gain(answers: list[str], others: list[str], targets: list[str]) -> dict[str, float]:
    """How much more of `answers` than of `others` is an exact match, -1 to 1: value, low, high.

    Both answer the same rows, so the interval is that of the pairs' difference, and narrower than the two
    systems' own intervals suggest.
    """
    table = compare(answers, targets)
    table["more"] = table["exact"].astype(int) - compare(others, targets)["exact"].astype(int)
    interval = _intervals(*_resampled(table, ["more"], ["rows"]))
    return {side: float(bound[0]) for side, bound in interval.items()}


def by_function(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """Strict exact match for each function of the targets: columns rows, exact match, low, high.

    Without a description there is one row, for all of them.
    """
    table = compare(answers, targets)
    functions = table["target"].str.partition("(")[0] if description else pd.Series("all", index=table.index)
    found = {}
    for function, part in table.groupby(functions):
        interval = _intervals(*_resampled(part, *_columns(["exact match"])))
        found[function] = {"rows": len(part), "exact match": interval.pop("value")[0]}
        found[function] |= {side: bound[0] for side, bound in interval.items()}
    result = pd.DataFrame.from_dict(found, orient="index").rename_axis("function")
    return result.sort_values("rows", ascending=False, kind="stable")


def by_attribute(answers: list[str], targets: list[str], description: Description | None) -> pd.DataFrame:
    """An attribute of the description a row: columns support (of the targets), precision, recall, F1, and
    F1's interval, low and high. Without a description there are no rows."""
    if description is None:
        return pd.DataFrame(columns=["support", "precision", "recall", "F1", "low", "high"])
    table, names = compare(answers, targets, description), list(description.attributes)
    counts = {side: _counted(table[side], names) for side in ("hit", "wanted", "given")}
    hits, meant, said = (frame.to_numpy() for frame in counts.values())
    per_row = pd.DataFrame({"target": table["target"]})
    above, below = ([f"{side} {name}" for name in names] for side in ("above", "below"))
    per_row[above], per_row[below] = 2 * hits, said + meant
    hits, meant, said = hits.sum(axis=0), meant.sum(axis=0), said.sum(axis=0)
    columns = {"support": meant, "precision": _ratio(hits, said), "recall": _ratio(hits, meant)}
    f1 = _intervals(*_resampled(per_row, above, below))
    columns |= {"F1": f1["value"], "low": f1["low"], "high": f1["high"]}
    return pd.DataFrame(columns, index=pd.Index(names, name="attribute"))


def compare(answers: list[str], targets: list[str], description: Description | None = None) -> pd.DataFrame:
    """A pair a row: columns answer, target, exact and rows (1 each); with a description also what `METRICS`
    sums, and the attributes of both sides and those right in both, as tuples of (name, canonical value)."""
    pairs = _pairs(answers, targets)
    table = pd.DataFrame(pairs, columns=["answer", "target"], dtype=object)  # any str, surrogates too
    table = table.assign(exact=table["answer"] == table["target"], rows=1)
    if description is None:
        return table
    # Each text is read once, and each pair compared once: a split repeats both.
    known = {target: _target(target, description) for target in table["target"].unique()}
    read = {answer: _answer(answer, description) for answer in table["answer"].unique()}
    distinct = list(dict.fromkeys(pairs))
    found = pd.DataFrame([_compared(*read[a], known[t]) for a, t in distinct], columns=_COMPARED)
    place = {pair: number for number, pair in enumerate(distinct)}
    return table.join(found.iloc[[place[pair] for pair in pairs]].reset_index(drop=True))


_COMPARED = "same,function,parses,valid,said,meant,said and meant,hits,twice hits,given,wanted,hit".split(",")


def _compared(answer: Meaning | None, valid: bool, target: Meaning) -> tuple:
    given, wanted = answer.attributes if answer else (), target.attributes
    hit = tuple((Counter(given) & Counter(wanted)).elements())
    said, meant, hits = len(given), len(wanted), len(hit)
    right = answer is not None and answer.function == target.function
    flags = (answer == target, right, answer is not None, valid)
    return (*flags, said, meant, said + meant, hits, 2 * hits, given, wanted, hit)


def _pairs(answers: list[str], targets: list[str]) -> list[tuple[str, str]]:
    if len(answers) != len(targets) or not targets:
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    return [(a.strip(), t.strip()) for a, t in zip(answers, targets, strict=True)]


def _target(text: str, description: Description) -> Meaning:
    try:
        meaning = parse(text)
        check(meaning, description)
    except ValueError as error:
        raise ValueError(f"target {text!r}: {error}") from None
    return canonical(meaning, description)


def _answer(text: str, description: Description) -> tuple[Meaning | None, bool]:
    """The canonical meaning, None where it does not parse, and whether the description allows it."""
    try:
        meaning = parse(text)
    except ValueError:
        return None, False
    try:
        check(meaning, description)
    except ValueError:
        return canonical(meaning, description), False
    return canonical(meaning, description), True


def _counted(attributes: pd.Series, names: list[str]) -> pd.DataFrame:
    """How often each name stands in each row's attributes: shape (rows, names)."""
    rows = [Counter(name for name, _ in row) for row in attributes]
    return pd.DataFrame([[row[name] for name in names] for row in rows], columns=names)


def _columns(metrics: list[str]) -> tuple[list[str], list[str]]:
    above, below = zip(*(METRICS[metric] for metric in metrics), strict=True)
    return list(above), list(below)


def _resampled(
    table: pd.DataFrame, above: list[str], below: list[str], seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Both columns' sums, each of shape (1 + resamples, metrics): first over all meanings, then over as
    many meanings drawn with replacement."""
    sums = table.groupby("target")[[*above, *below]].sum().to_numpy(float)  # (meanings, 2 x metrics)
    rng, drawn = np.random.default_rng(seed), np.empty((1 + resamples, sums.shape[1]))
    drawn[0] = sums.sum(axis=0)
    for i in range(1, 1 + resamples):
        drawn[i] = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums)) @ sums
    return tuple(np.split(drawn, 2, axis=1))


def _intervals(above: np.ndarray, below: np.ndarray) -> dict[str, np.ndarray]:
    ratio = _ratio(above, below)
    # A draw without what is counted has no ratio, and says nothing of the interval.
    drawn = np.where((below[1:] == 0) & (below[0] != 0), np.nan, ratio[1:])
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {"value": ratio[0], "low": low, "high": high}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below != 0)
