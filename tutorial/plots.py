"""Pictures and tables for the notebook."""

import difflib
import json
import re
import textwrap
from pathlib import Path

import pandas as pd
import yaml
from IPython.core.pylabtools import print_figure
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tutorial.look import BLUE, GREEN, INK, ORANGE, RC, VERMILLION
from tutorial.settings import Profile

TOKEN = re.compile(r"\w+\[[^\[\]]*\]|\w+|\s+|.", re.DOTALL)  # `name[Portal 2]` is one
NOISE = "\n. "  # what yaml puts around a bare value
COLORS = (VERMILLION, ORANGE, BLUE, GREEN)  # of the systems that are compared
plt.rcParams.update(RC)


class Picture:
    """A figure, and for who cannot see it the text that says what it shows."""

    def __init__(self, figure: Figure, alt: str):
        self.figure, self.alt = figure, alt
        plt.close(figure)  # the cell's value is shown; pyplot would show it a second time

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        data = {"image/png": print_figure(self.figure, base64=True), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def training_log(path: str | Path) -> pd.DataFrame:
    """The log in Transformers' trainer_state.json, of all attempts at a run: one row an entry; columns step,
    loss, eval_loss, learning_rate."""
    history = json.loads(Path(path).read_text(encoding="utf-8"))["log_history"]
    return pd.DataFrame(history).reindex(columns=["step", "loss", "eval_loss", "learning_rate"])


def loss_curve(log: pd.DataFrame, fault: dict[str, dict[str, float]]) -> Picture:
    """Training and validation loss (nats a target token, log scale) against the optimizer's steps.

    Args:
        log: `training_log`'s.
        fault: `sabotage.read`'s; where a worker was killed, and from which step the run went on, is marked.
    """
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    train, val = log.dropna(subset="loss"), log.dropna(subset="eval_loss")
    axes.plot(train["step"], train["loss"], color=BLUE, label="train")
    axes.plot(val["step"], val["eval_loss"], "o--", color=VERMILLION, label="validation")
    if fault:
        killed, again = fault["killed"]["step"], fault["resumed"]["step"] - 1
        axes.axvspan(again, killed, color=ORANGE, alpha=0.3, label="done twice")
        axes.axvline(killed, color=VERMILLION, linestyle=":", label="worker killed")
    axes.set(xlabel="optimizer step", ylabel="loss per target token", yscale="log", title="Loss")
    axes.grid()
    axes.legend()
    said = [
        f"{name} from {losses.iloc[0]:.2f} to {losses.iloc[-1]:.2f}"
        for name, losses in (("training", train["loss"]), ("validation", val["eval_loss"]))
        if len(losses)
    ]
    if fault:
        said.append(f"a worker killed at step {killed}, the run going on from step {again} without a gap")
    return Picture(figure, f"Loss per target token against optimizer steps: {', '.join(said)}.")


def scores(found: dict[str, pd.DataFrame]) -> Markdown:
    """`score.scores` of several systems side by side."""
    columns = {
        name: [f"{row.value:.3f} ({row.low:.2f} to {row.high:.2f})" for row in part.itertuples()]
        for name, part in found.items()
    }
    return table(pd.DataFrame(columns, index=next(iter(found.values())).index), index=True)


def faults(path: str | Path) -> Markdown:
    """benchmarks/faults.json, as the tests of tests/faults wrote it: a row a fault; recovery in seconds."""
    found = pd.DataFrame(json.loads(Path(path).read_text(encoding="utf-8"))["faults"])
    order = ["training", "batch inference", "all"]
    found = found.sort_values("stage", key=lambda stages: stages.map(order.index), kind="stable")
    names = {"recovery_s": "after, s"}
    shown = found.astype({"recovery_s": object}).fillna({"recovery_s": "-"}).rename(columns=names)
    return table(shown, longest=200)


def by_attribute(found: pd.DataFrame) -> Markdown:
    """`score.by_attribute`, of the attributes that the targets have."""
    shown = found[found["support"] > 0].sort_values("support", ascending=False, kind="stable")
    columns = {name: shown[name].map("{:.2f}".format) for name in ("precision", "recall")}
    columns["F1"] = [f"{row.F1:.2f} ({row.low:.2f} to {row.high:.2f})" for row in shown.itertuples()]
    return table(pd.DataFrame({"targets": shown["support"]} | columns), index=True)


def by_function(found: dict[str, pd.DataFrame]) -> Picture:
    """Strict exact match (0 to 1) with its 95% interval for each function of the targets, a bar a system."""
    frames = list(found.values())
    places, height = range(len(frames[0])), 0.8 / len(frames)
    figure, axes = plt.subplots(figsize=(7, 1 + 0.55 * len(frames[0])), layout="constrained")
    for number, (name, frame) in enumerate(found.items()):
        value = frame["exact match"]
        axes.barh(
            [place + (number - (len(frames) - 1) / 2) * height for place in places],
            value,
            height,
            xerr=[value - frame["low"], frame["high"] - value],
            error_kw={"elinewidth": 0.8, "ecolor": INK},
            color=COLORS[number],
            label=name,
        )
    labels = [f"{function} ({rows})" for function, rows in frames[0]["rows"].items()]
    axes.set(xlim=(0, 1.02), xlabel="strict exact match on the test rows, 95% interval")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(frames))
    said = [
        f"{name}: {', '.join(f'{function} {v:.2f}' for function, v in frame['exact match'].items())}"
        for name, frame in found.items()
    ]
    return Picture(figure, f"Strict exact match for each function, a bar a system. {'; '.join(said)}.")


def table(frame: pd.DataFrame, index: bool = False, longest: int | None = None) -> Markdown:
    """A table that reads well in a notebook, on a repository's page and in README.md alike.

    With `longest`, cells are text of any kind and not Markdown: what Markdown would read as its own is
    escaped, and text of more characters is cut at a word.
    """
    if longest:
        frame = frame.map(lambda cell: _plain(cell, longest) if isinstance(cell, str) else cell)
    return Markdown(frame.to_markdown(index=index, disable_numparse=True))


def differences(found: pd.DataFrame, longest: int = 400) -> Markdown:
    """`mistakes.telling`, with what differs between target and answer in bold."""
    rows = []
    for row in found.itertuples():
        sides = (textwrap.shorten(text, longest, placeholder=" …") for text in (row.target, row.answer))
        rows.append((row.kind, _plain(row.input, longest), *_bold(*sides)))
    return table(pd.DataFrame(rows, columns=["kind", "input", "target", "answer"], dtype=object))


def _bold(*sides: str) -> list[str]:
    """Both sides as Markdown, what differs between them in bold; separators around it stay plain."""
    marked, tokens = ["", ""], [TOKEN.findall(side) for side in sides]
    for tag, *ends in difflib.SequenceMatcher(", ".__contains__, *tokens, autojunk=False).get_opcodes():
        for side, (start, end) in enumerate((ends[:2], ends[2:])):
            text = _escaped("".join(tokens[side][start:end]))
            if tag != "equal":
                text = re.sub(r"[^,\s](?:.*[^,\s])?", r"**\g<0>**", text, count=1, flags=re.DOTALL)
            marked[side] += text
    return marked


def _plain(text: str, longest: int) -> str:
    return _escaped(textwrap.shorten(text, longest, placeholder=" …"))


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is; an underscore within a word is none of Markdown's."""
    return re.sub(r"[\\`*<>|$~]|\](?=\()|\b_|_\b", r"\\\g<0>", text)


def profile(chosen: Profile) -> Markdown:
    """What the profile sets, a field a row."""
    fields = chosen.model_dump(include={"model", "rows", "engine", "processor", "serving"})
    values = {
        key: f"`{yaml.safe_dump(value, default_flow_style=True, width=10_000).strip(NOISE)}`"
        for key, value in fields.items()
    }
    return table(pd.DataFrame({"field": values.keys(), f"profiles/{chosen.name}.yaml": values.values()}))


def stages(seconds: dict[str, float]) -> Markdown:
    """Seconds a stage and their sum."""
    total = seconds | {"total": sum(seconds.values())}
    return table(pd.DataFrame({"stage": total.keys(), "seconds": [f"{s:.0f}" for s in total.values()]}))
