"""Exact match against the number of training rows. From the project's root:

    python -m benchmarks.learning_curve 75 150 300 600

Runs README.ipynb up to its batch stage once for each number, with the settings of the environment, and scores
the fine-tuned model on the test rows. The points go to benchmarks/learning_curve.json, under the name of
profile and data; images/learning_curve.svg is drawn from all that is in it.
"""

import json
import os
import sys
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks import batch_stage
from tutorial.look import BLUE, GREEN, RC, VERMILLION
from tutorial.settings import ROOT

RESULTS = Path(__file__).with_suffix(".json")
PICTURE = ROOT / "images" / "learning_curve.svg"
ONE_SYSTEM = 'SYSTEMS = {"fine-tuned": SYSTEMS["fine-tuned"]}'


def draw(curves: dict[str, dict], file: Path) -> None:
    """A picture: a line a curve, with the 95% interval of each point."""
    plt.rcParams.update(RC)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for color, (name, curve) in zip((BLUE, VERMILLION, GREEN), curves.items(), strict=False):
        points = curve["points"]
        value = [point["value"] for point in points]
        spread = [
            [v - point["low"] for v, point in zip(value, points, strict=True)],
            [point["high"] - v for v, point in zip(value, points, strict=True)],
        ]
        sizes = [point["train_rows"] for point in points]
        axes.errorbar(
            sizes, value, spread, marker="o", capsize=3, color=color, label=f"{name}: {curve['model']}"
        )
    axes.set(xscale="log", ylim=(0, 1), xlabel="training rows", ylabel="strict exact match")
    axes.set_xticks(ticks := sorted({p["train_rows"] for c in curves.values() for p in c["points"]}), ticks)
    axes.minorticks_off()
    axes.grid()
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure the sizes of the command line, one after the other, and draw."""
    curves = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for train_rows in map(int, sys.argv[1:]):
        os.environ["TRAIN_ROWS"] = str(train_rows)
        found = batch_stage.execute(ONE_SYSTEM)
        point = {"train_rows": found.pop("train_rows")} | found.pop("exact match")["fine-tuned"]
        name = f"{found['profile']}, {found['data']}"
        earlier = curves.get(name, {"points": []})["points"]
        others = [other for other in earlier if other["train_rows"] != point["train_rows"]]
        points = sorted([*others, point], key=lambda each: each["train_rows"])
        curves[name] = found | {"points": points}
        print(point, flush=True)
        RESULTS.write_text(json.dumps(curves, indent=2) + "\n")
    draw(curves, PICTURE)


if __name__ == "__main__":
    main()
