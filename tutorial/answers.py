"""The kind of a task's answers, said by its file or found in its rows; answers that are labels or plain text.

Answers that are meaning representations are in `meaning`, JSON objects in `schema`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pandas as pd

from tutorial import TutorialError, one_line, plots, schema, score
from tutorial.data import Drawn
from tutorial.kind import Compared, Kind, Seen
from tutorial.meaning import Meanings
from tutorial.tasks import Task

MOST, LONGEST = 100, 60  # labels of a task that are found by themselves, and characters of one
OFTEN = 3  # rows of a label at least, on average
OTHER = "(no label)"  # an answer that is none
# A word; of Chinese, Japanese and Korean, which need no spaces, a character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Labels(Kind):
    """One of a few labels. Rows share a target by nature, and two rows of one label are as independent as any
    two: intervals count questions, so that only a question that stands in several rows counts once."""

    name, unit, part = "label", "questions", "label"
    metrics: ClassVar = {"accuracy": lambda row: row.right, "valid answers": lambda row: row.valid}
    mistaken: ClassVar = {"not a label": lambda row: not row.valid, "another label": lambda row: True}
    shown = ("accuracy", "macro F1", "valid answers")

    def __init__(self, known: list[str]):
        self.known = known
        self.guide = {"structured_outputs": {"choice": known}}

    def read(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """The label, which is its one part."""
        return text, [(text, "")]

    def check(self, said: str) -> None:
        """ValueError if the label is not known."""
        if said not in self.known:
            raise ValueError(f"{said!r} is no label")

    def units(self, rows: list[Compared], inputs: list[str] | None) -> list[str]:
        """The questions; without them each row."""
        return inputs or [str(number) for number in range(len(rows))]

    def overall(self, rows: list[Compared]) -> dict[str, float]:
        """The mean of the labels' F1, over the labels that targets or answers have."""
        return {"macro F1": float(score.by_part(rows, self.listed(rows))["F1"].mean())}

    def listed(self, rows: list[Compared]) -> list[str]:
        """The labels of the targets, and known ones among the answers."""
        return sorted({row.target for row in rows} | {row.answer for row in rows if row.valid})

    def picture(self, part: pd.DataFrame) -> plots.Picture:
        """The confusion matrix of one system's answers."""
        rows = score.compare(list(part["answer"]), list(part["target"]), self)
        labels = self.listed(rows)
        answers = [row.answer if row.answer in labels else OTHER for row in rows]
        table = pd.crosstab(pd.Series([row.target for row in rows]), pd.Series(answers))
        columns = [*labels, OTHER] if OTHER in answers else labels
        return plots.confusion(table.reindex(index=labels, columns=columns, fill_value=0))


def common(one: list[str], other: list[str]) -> int:
    """The length of the longest sequence of words that stands in both in this order, with gaps."""
    words, longest = np.array(other, dtype=object), np.zeros(len(other) + 1, dtype=int)  # up to each word
    for word in one:
        with_it = (longest[:-1] + 1) * (words == word)
        longest[1:] = np.maximum.accumulate(np.maximum(longest[1:], with_it))
    return int(longest[-1])


def f1(row: Compared, hits: int) -> tuple[float, int]:
    """F1 of the words, from 0 to 1, as the metric of one row."""
    total = len(row.said) + len(row.meant)
    return (2 * hits / total if total else float(row.right)), 1


class Text(Kind):
    """Plain text: exact, normalised, and by the words that it shares with its target.

    Intervals count distinct targets; the means of token F1 and ROUGE-L have none.
    """

    name, unit = "text", "targets"
    metrics: ClassVar = {
        "exact match": lambda row: row.right,
        "normalised match": lambda row: row.said == row.meant and (bool(row.meant) or row.right),
        "token F1": lambda row: f1(row, row.hits()),  # SQuAD's (Rajpurkar et al., 2016), with articles
        "ROUGE-L": lambda row: f1(row, common(row.said, row.meant)),  # Lin, ROUGE, 2004
    }
    mistaken: ClassVar = {
        "no word right": lambda row: not row.hits(),
        "case or punctuation": lambda row: row.said == row.meant,
        "some words right": lambda row: True,
    }
    shown = tuple(metrics)

    def read(self, text: str) -> tuple[list[str], Iterator[tuple[str, str]]]:
        """A text's words in lower case, without punctuation; each is a part."""
        words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        return words, ((word, "") for word in words)


def of(task: Task, rows: dict[str, Drawn]) -> Kind:
    """The kind of the answers in column `output`.

    If the rows decide it, all that were read do, and a line says so. Of labels and objects, another one says
    how many test rows have an answer unlike those of the training rows.

    Raises:
        TutorialError: an answer is no JSON object though the task file or most answers say so, or no grammar
            can be made of the schema.
    """
    if task.meaning:
        return Meanings(task.meaning)
    train, test = ([row["output"].strip() for row in rows[split]] for split in ("train", "test"))
    seen = rows["train"].seen
    kind = task.kind or _found(seen, rows["test"].seen)
    if not task.kind:
        print(f"kind of answers, found from the training rows: {kind}")
    if kind == "label":
        if unknown := Counter(sorted(label for label in test if label not in set(train))):
            shown = ", ".join(f"{label!r} in {count}" for label, count in unknown.items())
            print(f"labels that no training row has: {shown} of {len(test)} test rows")
        return Labels(task.labels or sorted(seen))
    if kind == "text":
        return Text()
    try:
        found = task.json_schema or schema.of(schema.parse(text) for text in {*seen, *train})
        kind = schema.Objects(found, schema.separators(train))
    except ValueError as error:
        raise TutorialError(f"{task.name}.yaml: answers: JSON does not fit the rows: {error}") from None
    if strange := [text for text in test if not kind.compare(text, text).valid]:
        print(f"{len(strange)} of {len(test)} test rows have an answer unlike those of the training rows")
    return kind


def _found(train: Seen, test: Seen) -> str:
    texts = {*train, *test}
    flaws = {text: flaw for text in sorted(texts) if (flaw := _flaw(text))}
    if not flaws:
        return "JSON"
    if len(flaws) <= len(texts) / 10:
        few = f"{len(flaws)} of {len(texts)} different answers are no JSON objects, and the others are"
        text, flaw = next(iter(flaws.items()))
        said = "to learn their lines, write `answers: JSON` in a task file; to allow them, `answers: text`"
        raise TutorialError(f"DATA: {few}, such as {text[:40]!r}: {flaw}; {said}")
    # Labels are few, short, in one line, each of them often.
    short = all(len(each) <= LONGEST and len(each.splitlines()) == 1 for each in train)
    return "label" if short and 2 <= len(train) <= min(MOST, train.total() / OFTEN) else "text"


def _flaw(text: str) -> str:
    """Why a text is no JSON object; empty if it is one."""
    try:
        schema.parse(text)
    except ValueError as error:
        return one_line(error)
    return ""
