"""Exact match against the number of training rows. From the project's root:

    python -m benchmarks.learning_curve 75 150 300 600

Runs README.ipynb up to its batch stage once for each number, with the settings of the environment, and scores
the fine-tuned model on the test rows. The points go to benchmarks/learning_curve.json, under the name of
profile and data; images/learning_curve.svg is drawn from all that is in it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from matplotlib import pyplot as plt
from nbformat.v4 import new_code_cell

from tutorial import run
from tutorial.look import BLUE, GREEN, RC, VERMILLION

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_suffix(".json")
ONE_SYSTEM = 'SYSTEMS = {"fine-tuned": SYSTEMS["fine-tuned"]}'
POINT = """
results.write(Path("{path}"), {{
    "stamp": results.stamp(cluster),
    "profile": profile.name,
    "data": task.name if len(rows["train"]) == task.expected.get("train") else f"{{task.name}}, sample",
    "model": Path(profile.model).name,
    "recipe": Path(profile.recipe).name,
    "test_rows": len(used["test"]),
    "point": {{"train_rows": len(used["train"])}} | scores["fine-tuned"].loc["exact match"].to_dict(),
}})
with quiet.shutdown():
    ray.shutdown()
store.close()
"""


def measure(train_rows: int) -> dict:
    """One run with this many training rows."""
    notebook = nbformat.read(ROOT / "README.ipynb", as_version=4)
    cells = notebook.cells
    end = next(i for i, cell in enumerate(cells) if cell.source.startswith("## 6."))
    del cells[end:]
    asks = next(i for i, cell in enumerate(cells) if cell.source.startswith("questions = ["))
    scored = next(i for i, cell in enumerate(cells) if "scores = {" in cell.source)
    del cells[scored + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "point.json")
        cells.insert(asks, new_code_cell(ONE_SYSTEM))
        cells.append(new_code_cell(POINT.format(path=path)))
        os.environ["TRAIN_ROWS"] = str(train_rows)
        run.execute(notebook)
        return json.loads(path.read_text())


def draw(curves: dict[str, dict]) -> None:
    """images/learning_curve.svg: a line a curve, with the 95% interval of each point."""
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
    figure.savefig(ROOT / "images" / "learning_curve.svg", metadata={"Date": None})


def main() -> None:
    """Measure the sizes of the command line, one after the other, and draw."""
    curves = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for train_rows in map(int, sys.argv[1:]):
        found = measure(train_rows)
        point, name = found.pop("point"), f"{found['profile']}, {found['data']}"
        earlier = curves.get(name, {"points": []})["points"]
        others = [other for other in earlier if other["train_rows"] != point["train_rows"]]
        points = sorted([*others, point], key=lambda each: each["train_rows"])
        curves[name] = found | {"points": points}
        print(point, flush=True)
        RESULTS.write_text(json.dumps(curves, indent=2) + "\n")
    draw(curves)


if __name__ == "__main__":
    main()
