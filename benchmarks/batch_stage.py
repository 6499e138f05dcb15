"""README.ipynb up to the scores of its batch stage, with other systems than the page's, for benchmarks."""

import json
import os
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from tutorial import run
from tutorial.settings import ROOT

END = """
clock.stage(None)
results.write(Path("{path}"), {{
    "stamp": results.stamp(cluster),
    "profile": profile.name,
    "data": task.name if len(rows["train"]) == task.expected.get("train") else f"{{task.name}}, sample",
    "model": Path(profile.model).name,
    "recipe": Path(profile.recipe).name,
    "train_rows": len(used["train"]),
    "test_rows": len(used["test"]),
    "exact match": {{name: found.loc["exact match"].to_dict() for name, found in scores.items()}},
}} | {more})
with quiet.reports():
    ray.shutdown()
store.close()
"""


def execute(
    systems: str,
    question: str = "row | system",
    more: str = "{}",
    engine: dict | None = None,
    mean: float = 0.0,
) -> dict:
    """Run the cells with the settings of the environment; exact match of each system, and on what.

    Args:
        systems: code that runs before the questions are made and may replace SYSTEMS.
        question: what stands for `row | system` where they are made.
        more: code for a dictionary of what else is to be known at the end.
        engine: laid over the profile's engine.
        mean: share of the training's steps, the last, whose mean weights are the adapter; 0: the last ones.
    """
    notebook = nbformat.read(ROOT / "README.ipynb", as_version=4)
    cells = notebook.cells
    [asks] = [i for i, cell in enumerate(cells) if "row | system" in cell.source]
    [scored] = [i for i, cell in enumerate(cells) if "\nscores = {" in cell.source]
    del cells[scored + 1 :]
    cells[asks].source = cells[asks].source.replace("row | system", question)
    if engine:
        [builds] = [cell for cell in cells if "engine_kwargs = profile.engine | {" in cell.source]
        builds.source = builds.source.replace("profile.engine | {", f"profile.engine | {engine!r} | {{")
    if mean:
        [trains] = [cell for cell in cells if "callbacks = [" in cell.source]
        made = f"__import__('benchmarks.mean').mean.Mean({mean})"
        trains.source = trains.source.replace("callbacks = [", f"callbacks = [{made}, ")
    os.environ["KILL_WORKER"] = "0"  # nor does a benchmark show how a run survives that
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        cells.append(new_code_cell(END.format(path=path, more=more)))
        cells.insert(asks, new_code_cell(systems))
        run.execute(notebook)
        return json.loads(path.read_text(encoding="utf-8"))
