"""Pictures and tables for the notebook."""

import difflib
import json
import re
from pathlib import Path

import pandas as pd
import yaml
from IPython.core.pylabtools import print_figure
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tutorial.score import FEW
from tutorial.settings import ROOT, Profile

STYLE = ROOT / "images" / "tutorial.mplstyle"
plt.style.use(STYLE)
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
INK, GREY = plt.rcParams["text.color"], plt.rcParams["axes.edgecolor"]
NO_GRAMMAR = "This task has no grammar, so its answers are compared as whole texts."
TOKEN = re.compile(r"[^\[\](),]+\[[^\[\]]*\]|\w+|\s+|.", re.DOTALL)  # `name[Portal 2]` is one token


class Picture:
    """A figure, with a text that says what it shows to readers who cannot see it."""

    def __init__(self, figure: Figure, alt: str):
        self.figure, self.alt = figure, alt
        plt.close(figure)  # the cell's value is shown; pyplot would show it a second time

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        data = {"image/png": print_figure(self.figure, base64=True), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def training_log(path: str | Path) -> pd.DataFrame:
    """The log in Transformers' trainer_state.json, of all attempts at a run: one row for each entry; columns
    step, loss, eval_loss, learning_rate."""
    history = json.loads(Path(path).read_text(encoding="utf-8"))["log_history"]
    return pd.DataFrame(history).reindex(columns=["step", "loss", "eval_loss", "learning_rate"])


def loss_curve(log: pd.DataFrame, fault: dict[str, dict[str, float]]) -> Picture:
    """Training and validation loss (nats per target token, log scale) against optimizer steps.

    Args:
        log: what `training_log` returns.
        fault: {"killed": {"step": n}, "resumed": {"step": n}} of the worker that was killed, or empty.
    """
    axes = plt.figure(figsize=(7, 3), layout="constrained").subplots()
    names, said = {"loss": "training", "eval_loss": "validation"}, []
    for (column, name), style in zip(names.items(), ("-", "o--"), strict=True):
        losses = log.dropna(subset=column)
        axes.plot(losses["step"], losses[column], style, label=name)
        if len(losses):
            said.append(f"{name} from {losses[column].iloc[0]:.2f} to {losses[column].iloc[-1]:.2f}")
    if fault:
        killed, again = fault["killed"]["step"], fault["resumed"]["step"] - 1
        axes.axvspan(again, killed, color=ORANGE, alpha=0.3, label="done twice")
        axes.axvline(killed, color=VERMILLION, linestyle=":", label="worker killed")
        said.append(f"a worker killed at step {killed}, the run going on from step {again} without a gap")
    axes.set(xlabel="optimizer step", ylabel="loss per target token", yscale="log", title="Loss")
    axes.grid()
    axes.legend()
    return Picture(axes.figure, f"Loss per target token against optimizer steps: {', '.join(said)}.")


def scores(found: dict[str, pd.DataFrame]) -> Markdown:
    """What `score.scores` returns of several systems, side by side; shares with their 95% intervals."""
    columns = {name: [_value(row) for row in part.itertuples()] for name, part in found.items()}
    return table(pd.DataFrame(columns, index=next(iter(found.values())).index), index=True)


def gains(found: dict[str, dict[str, float]]) -> Markdown:
    """What `score.gain` returns of several pairs of systems, with 95% intervals."""
    columns = {"more exact matches": [_value(row, "+") for row in pd.DataFrame(found).T.itertuples()]}
    return table(pd.DataFrame(columns, index=pd.Index(found, name="of the same rows")), index=True)


def _value(row: tuple, sign: str = "") -> str:
    few = f", {row.meanings:.0f} meanings" if row.meanings < FEW else ""
    interval = "" if pd.isna(row.low) else f" ({row.low:{sign}.2f} to {row.high:{sign}.2f}{few})"
    return f"{row.value:{sign}.3f}{interval}"


def by_attribute(found: pd.DataFrame) -> Markdown:
    """What `score.by_attribute` returns, for the attributes that the targets have."""
    shown = found[found["support"] > 0].sort_values("support", ascending=False, kind="stable")
    if shown.empty:
        return Markdown(NO_GRAMMAR)
    ratios = shown[["precision", "recall", "F1"]].map("{:.2f}".format)
    return table(pd.concat([shown["support"].rename("targets"), ratios], axis=1), index=True)


def by_function(found: dict[str, pd.DataFrame]) -> Picture | Markdown:
    """Exact match (0 to 1) with its 95% interval for each function of the targets, a bar for each system."""
    first = next(iter(found.values()))
    if first.empty:
        return Markdown(NO_GRAMMAR)
    value, low, high = (
        pd.DataFrame({n: f[c] for n, f in found.items()}) for c in ("exact match", "low", "high")
    )
    value, low, high = (frame.loc[first.index] for frame in (value, low, high))
    labels = [
        f"{_cut(name, 40)} ({row.rows} rows, {row.meanings:.0f} meanings)".replace("$", r"\$")
        for name, row in zip(first.index, first.itertuples(), strict=True)
    ]
    axes = plt.figure(figsize=(7, 1 + 0.55 * len(first)), layout="constrained").subplots()
    errors = [[value[name] - low[name], high[name] - value[name]] for name in found]
    colors = [VERMILLION, ORANGE, BLUE, GREEN]
    style = {"ecolor": INK, "error_kw": {"elinewidth": 0.8}, "color": colors, "width": 0.8, "legend": False}
    value.set_axis(labels).plot.barh(ax=axes, xerr=errors, **style)
    axes.set(xlim=(0, 1.02), xlabel="exact match on the test rows, 95% interval", ylabel="")
    axes.invert_yaxis()
    axes.figure.legend(loc="outside upper center", ncols=len(found))
    said = [f"{n}: {', '.join(f'{f} {v:.2f}' for f, v in column.items())}" for n, column in value.items()]
    return Picture(axes.figure, f"Exact match for each function, one bar for each system. {'; '.join(said)}.")


def faults(path: str | Path) -> Markdown:
    """The faults that tests/faults wrote to the JSON file at `path`: one row each; recovery in seconds."""
    found = pd.DataFrame(json.loads(Path(path).read_text(encoding="utf-8"))["faults"])
    order = ["training", "batch inference", "all"]
    found = found.sort_values("stage", key=lambda stages: stages.map(order.index), kind="stable")
    shown = found.astype({"recovery_s": object}).fillna({"recovery_s": "-"})
    return table(shown.rename(columns={"recovery_s": "after, s"}), longest=200)


def table(frame: pd.DataFrame, index: bool = False, longest: int | None = None) -> Markdown:
    """A table for a notebook, a repository's page and README.md alike. Labels of rows are plain text.

    With `longest`, cells are plain text too, and not Markdown, and are cut after so many characters.
    """
    if longest:
        frame = frame.map(lambda cell: _plain(cell, longest) if isinstance(cell, str) else cell)
    if index:
        frame = frame.rename(index=lambda label: _plain(label, 80) if isinstance(label, str) else label)
    return Markdown(frame.to_markdown(index=index, disable_numparse=True))


def differences(found: pd.DataFrame, longest: int = 400) -> Markdown:
    """What `score.telling` returns, with what differs between target and answer in bold."""
    rows = [
        (row.kind, _plain(row.input, longest), *_bold(_cut(row.target, longest), _cut(row.answer, longest)))
        for row in found.itertuples()
    ]
    return table(pd.DataFrame(rows, columns=["kind", "input", "target", "answer"], dtype=object))


def _bold(target: str, answer: str) -> tuple[str, str]:
    """Both as Markdown, what differs between them in bold; separators around it stay plain."""
    a, b = TOKEN.findall(target), TOKEN.findall(answer)
    left = right = ""
    matcher = difflib.SequenceMatcher(lambda text: text in ", ", a, b, autojunk=False)
    for change, a0, a1, b0, b1 in matcher.get_opcodes():
        pieces = (_escaped("".join(a[a0:a1])), _escaped("".join(b[b0:b1])))
        if change != "equal":
            pieces = [re.sub(r"[^,\s](?:.*[^,\s])?", r"**\g<0>**", piece, count=1) for piece in pieces]
        left, right = left + pieces[0], right + pieces[1]
    return left, right


def _cut(text: str, longest: int) -> str:
    """The text in one line, of at most `longest` characters and an ellipsis."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest].rstrip() + " …"


def _plain(text: str, longest: int) -> str:
    return _escaped(_cut(text, longest))


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is. An underscore within a word is not markup."""
    return re.sub(r"[\\`*<>|$~]|\](?=\()|\b_|_\b", r"\\\g<0>", text)


def profile(chosen: Profile) -> Markdown:
    """What the profile sets: one row for each field."""
    fields = chosen.model_dump(include={"model", "rows", "engine", "processor", "serving"})
    values = [yaml.safe_dump(field, default_flow_style=True, width=10_000) for field in fields.values()]
    values = [value.removesuffix("\n").removesuffix("\n...") for value in values]  # what ends a bare value
    shown = {"field": fields.keys(), f"profiles/{chosen.name}.yaml": [f"`{value}`" for value in values]}
    return table(pd.DataFrame(shown))


def stages(seconds: dict[str, float]) -> Markdown:
    """Seconds of each stage, and their sum."""
    total = pd.Series(seconds | {"total": sum(seconds.values())}, name="seconds").rename_axis("stage")
    return table(total.map("{:.0f}".format).to_frame(), index=True)
