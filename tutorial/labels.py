"""Answers that are labels: accuracy, macro F1 and the confusion matrix."""

from collections import Counter

import pandas as pd

from tutorial import plots, score
from tutorial.score import Compared, Kind

MOST, LONGEST = 100, 60  # labels of a task that are found by themselves, and characters of one
OFTEN = 3  # rows of a label at least, on average
OTHER = "(no label)"  # an answer that is none
METRICS = {
    "accuracy": lambda row: row.answer == row.target,
    "valid answers": lambda row: row.valid,
}
KINDS = {"not a label": lambda row: not row.valid, "another label": lambda row: True}


class Labels(Kind):
    """One of a few labels. Rows share a target by nature, and two rows of one label are as independent as any
    two: intervals count questions, so that only a question that stands in several rows counts once."""

    name, unit = "label", "questions"
    metrics, mistaken = METRICS, KINDS
    shown = ("accuracy", "macro F1", "valid answers")

    def __init__(self, known: list[str]):
        self.known = known
        self.guide = {"structured_outputs": {"choice": known}}

    def compare(self, answer: str, target: str) -> Compared:
        """An answer is valid if it is a known label. Its one part is the label."""
        parts = [Counter({(label, ""): 1}) for label in (answer, target)]
        return Compared(answer, target, answer, target, *parts, valid=answer in self.known)

    def units(self, targets: list[str], inputs: list[str] | None) -> list[str]:
        """The questions; without them each row."""
        return inputs or [str(number) for number in range(len(targets))]

    def overall(self, rows: list[Compared]) -> dict[str, float]:
        """The mean of the labels' F1, over the labels that targets or answers have."""
        found = score.by_part(rows, self._labels(rows))
        return {"macro F1": float(found["F1"].mean())}

    def views(self, answers: list[str], targets: list[str]) -> dict[str, pd.DataFrame]:
        """`by_label`: support, precision, recall, F1."""
        rows = score.compare(answers, targets, self)
        return {"by_label": score.by_part(rows, self._labels(rows)).rename_axis("label")}

    def picture(self, part: pd.DataFrame) -> plots.Picture:
        """The confusion matrix of one system's answers."""
        rows = score.compare(list(part["answer"]), list(part["target"]), self)
        labels = self._labels(rows)
        answers = [row.answer if row.answer in labels else OTHER for row in rows]
        table = pd.crosstab(pd.Series([row.target for row in rows]), pd.Series(answers))
        columns = [*labels, OTHER] if OTHER in answers else labels
        return plots.confusion(table.reindex(index=labels, columns=columns, fill_value=0))

    def _labels(self, rows: list[Compared]) -> list[str]:
        """Those of the targets, and known ones among the answers."""
        return sorted({row.target for row in rows} | ({row.answer for row in rows} & set(self.known)))


def look_like(targets: list[str]) -> bool:
    """Whether these answers are labels: few, short, in one line, each of them often."""
    distinct = set(targets)
    short = all(len(each) <= LONGEST and len(each.splitlines()) == 1 for each in distinct)
    return short and 2 <= len(distinct) <= min(MOST, len(targets) / OFTEN)
