"""Pictures and tables for the notebook."""

import json
import textwrap
from pathlib import Path

import pandas as pd
import yaml
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tutorial.settings import Profile

NOISE = "\n. "  # what yaml puts around a bare value
BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by colour-blind readers too (Okabe and Ito)


def training_log(path: str | Path) -> pd.DataFrame:
    """LLaMA-Factory's trainer_log.jsonl: one row a log line; columns current_steps, loss, eval_loss, lr."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines]).reindex(
        columns=["current_steps", "loss", "eval_loss", "lr"]
    )


def loss_curve(log: pd.DataFrame) -> Figure:
    """Training and validation loss (nats a target token, log scale) against the optimizer's steps."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    train, val = log.dropna(subset="loss"), log.dropna(subset="eval_loss")
    axes.plot(train["current_steps"], train["loss"], color=BLUE, label="train")
    axes.plot(val["current_steps"], val["eval_loss"], "o--", color=ORANGE, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss per target token", yscale="log", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plt.close(figure)  # the cell's value is shown; pyplot would show it a second time
    return figure


def exact_match(scores: dict[str, float]) -> Figure:
    """Strict exact match (share of the test rows, 0 to 1) as one bar a model."""
    figure, axes = plt.subplots(figsize=(7, 1.6), layout="constrained")
    bars = axes.barh(list(scores), list(scores.values()), color=[ORANGE, BLUE])
    axes.bar_label(bars, fmt="{:.3f}", padding=4)
    axes.set(xlim=(0, 1.1), xlabel="strict exact match on the test rows")
    axes.invert_yaxis()
    plt.close(figure)
    return figure


def table(frame: pd.DataFrame, index: bool = False) -> Markdown:
    """A table that reads well in a notebook, on a repository's page and in README.md alike."""
    short = frame.map(
        lambda cell: (
            textwrap.shorten(cell, 400, placeholder=" …").replace("|", r"\|")
            if isinstance(cell, str)
            else cell
        )
    )
    return Markdown(short.to_markdown(index=index, disable_numparse=True))


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
