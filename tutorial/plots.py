"""Pictures and tables for the notebook."""

import difflib
import re
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import yaml
from IPython.core.pylabtools import retina_figure
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tutorial.settings import ROOT

STYLE = ROOT / "tutorial" / "plots.mplstyle"
plt.style.use(STYLE)
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
INK, GREY = plt.rcParams["text.color"], plt.rcParams["axes.edgecolor"]
MOST = 20  # labels of a confusion matrix
TOKEN = re.compile(r"[^\s\[\](),][^\[\](),]*\[[^\[\]]*\]|\w+|\s+|.", re.DOTALL)  # `name[Portal 2]` is one


class Picture:
    """A figure, with a text that says what it shows to readers who cannot see it."""

    def __init__(self, figure: Figure, alt: str):
        self.figure, self.alt = figure, alt
        plt.close(figure)  # the cell's value is shown; pyplot would show it a second time

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        png, size = retina_figure(self.figure, base64=True)  # twice the pixels, and the size to show them in
        return {"image/png": png, "text/plain": self.alt}, {"image/png": {"alt": self.alt} | size}


def loss_curve(log: pd.DataFrame, fault: dict[str, dict[str, float]]) -> Picture:
    """Training and validation loss (nats per target token, log scale) against optimizer steps.

    The log has columns step, loss and eval_loss, and a row for each entry of the trainer's. The fault is
    {"killed": {"step": n}, "resumed": {"step": n}} of the worker that was killed, or empty.
    """
    axes, said = plt.figure(figsize=(6, 3), layout="constrained").subplots(), []
    lines = (("loss", "training", "-", BLUE), ("eval_loss", "validation", "o--", INK))
    for column, name, line, color in lines:
        losses = log.set_index("step")[column].dropna()
        axes.plot(losses, line, color=color, label=name)
        if len(losses):
            said.append(f"{name} from {losses.iloc[0]:.2f} to {losses.iloc[-1]:.2f}")
    if fault:
        killed, again = fault["killed"]["step"], fault["resumed"]["step"] - 1
        axes.axvspan(again, killed, color=VERMILLION, alpha=0.15, linewidth=0)
        axes.axvline(killed, color=VERMILLION, linestyle=":")
        note = f" worker killed at step {killed}\n resumed with step {again + 1}\n shaded steps ran twice"
        axes.text(killed, 0.97, note, transform=axes.get_xaxis_transform(), va="top")
        said.append(f"a worker killed at step {killed}, the run going on from step {again} without a gap")
    axes.set(xlabel="optimizer step", ylabel="loss per target token", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid()
    axes.legend(loc="lower left")
    return Picture(axes.figure, f"Loss per target token against optimizer steps: {', '.join(said)}.")


def scores(found: pd.DataFrame) -> Markdown:
    """What `Kind.scores` returns: a row for each system; shares with their 95% intervals."""
    return table(found, index=True)


def confusion(counts: pd.DataFrame) -> Picture:
    """The confusion matrix of labels. Of more than `MOST`, those with the most wrong answers are shown.

    Each row is a target, each column an answer. The targets come first among the columns, in the same order.
    """
    matrix, many = counts.to_numpy(), len(counts)
    right = np.diag(matrix)
    kept = np.sort(np.argsort(right - matrix.sum(axis=1), kind="stable")[:MOST])
    columns = [*kept, *range(many, matrix.shape[1])]
    shown = matrix[np.ix_(kept, columns)]
    size = 1.5 + 0.45 * shown.shape[1]
    axes = plt.figure(figsize=(size + 1.5, size), layout="constrained").subplots()
    axes.imshow(shown, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(shown):
        color = "white" if count > shown.max() / 2 else INK
        axes.text(column, row, count or "", ha="center", va="center", color=color)
    names = [_cut(str(counts.columns[place]), 24).replace("$", r"\$") for place in columns]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(kept)), names[: len(kept)])
    axes.spines[:].set_visible(False)
    some = f": {len(kept)} of {many} labels" if len(kept) < many else ""
    axes.set(xlabel="answer", ylabel="target", title=f"Confusion matrix{some}")
    wrong = counts.where(~np.eye(*matrix.shape, dtype=bool), 0).stack().nlargest(3)
    said = [f"{right.sum()} of {matrix.sum()} rows are right"]
    said += [f"{target} answered as {answer} in {n}" for (target, answer), n in wrong.items() if n]
    return Picture(axes.figure, f"Confusion matrix of labels: {'; '.join(said)}.")


def sizes(rows: dict[str, dict[str, str | int]]) -> Markdown:
    """What was found and how many rows are used, by split; see `data.summary`."""
    return table(pd.DataFrame(rows).rename_axis("split"), index=True)


def table(frame: pd.DataFrame, index: bool = False, longest: int | None = None) -> Markdown:
    """A table for a notebook, a repository's page and README.md alike. Its labels are plain text.

    With `longest`, cells are plain text too and not Markdown, and are cut after so many characters.
    """

    def plain(cell: Any, longest: int = 80) -> Any:
        return _escaped(_cut(cell, longest)) if isinstance(cell, str) else cell

    cells = frame.map(plain, longest=longest) if longest else frame
    shown = cells.rename(index=plain, columns=plain)
    return Markdown(shown.to_markdown(index=index, disable_numparse=True))


def differences(found: pd.DataFrame, longest: int = 400) -> Markdown:
    """What `Kind.mistakes` returns, with what differs between target and answer in bold."""
    if found.empty:
        return Markdown("No answer is wrong.")
    shown = found.map(_cut, longest=longest)
    sides = [_bold(row.target, row.answer) for row in shown.itertuples()]
    shown["input"] = shown["input"].map(_escaped)
    shown["target"], shown["answer"] = zip(*sides, strict=True)
    return table(shown)


def _bold(target: str, answer: str) -> tuple[str, str]:
    """Both as Markdown, what differs between them in bold, but for separators around it and for an opening
    parenthesis: to Markdown, `**` between a letter and punctuation is text."""
    a, b = TOKEN.findall(target), TOKEN.findall(answer)
    left = right = ""
    matcher = difflib.SequenceMatcher(lambda text: text in ", ", a, b, autojunk=False)
    for change, a0, a1, b0, b1 in matcher.get_opcodes():
        one, other = _escaped("".join(a[a0:a1])), _escaped("".join(b[b0:b1]))
        if change != "equal":
            bold = partial(re.sub, r"[^,\s(](?:.*[^,\s])?", r"**\g<0>**", count=1)
            one, other = bold(one), bold(other)
        left, right = left + one, right + other
    return left, right


def _cut(text: str, longest: int) -> str:
    """The text in one line, of at most `longest` characters and an ellipsis."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest].rstrip() + " …"


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is. An underscore within a word is not markup."""
    return re.sub(r"[\\`*<>|$~&]|\](?=\()|\b_|_\b", r"\\\g<0>", text)


def as_yaml(values: dict[str, Any]) -> Markdown:
    """Settings as they would stand in a yaml file."""
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    return Markdown(f"```yaml\n{text}```")
