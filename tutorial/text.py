"""Answers that are plain text: exact, normalised, and by the words that they share with their target."""

import re
import unicodedata
from collections import Counter

from tutorial.score import Compared, Kind

# A word; of Chinese, Japanese and Korean, which need no spaces, a character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words(text: str) -> list[str]:
    """A text's words in lower case, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def common(one: list[str], other: list[str]) -> int:
    """The length of the longest sequence of words that stands in both in this order, with gaps."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, each in enumerate(other, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if word == each else max(above, lengths[place - 1])
            before = above
    return lengths[-1]


def rouge_l(row: Compared) -> float:
    """ROUGE-L's F1 (Lin, ROUGE, 2004), from 0 to 1."""
    total = len(row.said) + len(row.meant)
    return 2 * common(row.said, row.meant) / total if total else float(row.answer == row.target)


def token_f1(row: Compared) -> float:
    """F1 of the words, as SQuAD has it (Rajpurkar et al., 2016), from 0 to 1."""
    total = len(row.said) + len(row.meant)
    return 2 * row.hits() / total if total else float(row.answer == row.target)


METRICS = {
    "exact match": lambda row: row.answer == row.target,
    "normalised match": lambda row: row.said == row.meant and (bool(row.meant) or row.answer == row.target),
    "token F1": token_f1,
    "ROUGE-L": rouge_l,
}
KINDS = {
    "no word right": lambda row: not row.hits(),
    "case or punctuation": lambda row: row.said == row.meant,
    "some words right": lambda row: True,
}


class Text(Kind):
    """Plain text. Intervals count distinct targets; the means of token F1 and ROUGE-L have none."""

    name, unit = "text", "targets"
    metrics, mistaken = METRICS, KINDS
    shown = tuple(METRICS)

    def compare(self, answer: str, target: str) -> Compared:
        """Both as lists of words."""
        said, meant = words(answer), words(target)
        parts = [Counter((word, "") for word in each) for each in (said, meant)]
        return Compared(answer, target, said, meant, *parts, valid=True)
