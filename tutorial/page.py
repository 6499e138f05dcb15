"""`make page`: the last run's outputs become the page's, and the figures in its prose those of its results.

A figure in the prose is followed by its place in results.json and its format, in a comment that no reader
sees: `0.683<!--=batch/scores/fine-tuned/exact match/value:.3f-->`. A place that begins with the name of a
benchmark is in its JSON, and -1 is a list's last item.
"""

import hashlib
import json
import re
import shutil
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import nbformat

from tutorial import TutorialError
from tutorial.settings import ROOT, read_yaml

PAGE = ROOT / "README.ipynb"
FIGURE = re.compile(r"[\w.,()%-]+<!--=(?P<key>[^:>]+):(?P<format>[^>]*)-->")


def fill(text: str, results: dict[str, Any]) -> str:
    """The text with every figure as `results` has it, `(none)` for one that this run does not have."""

    def item(part: Any, key: str) -> Any:
        return part[int(key)] if isinstance(part, list) else part[key]

    def figure(found: re.Match) -> str:
        try:
            value = format(reduce(item, found["key"].split("/"), results), found["format"])
        except (KeyError, IndexError, TypeError):
            value = "(none)"  # a task of plain text has no guided answers
        return f"{value}<!--={found['key']}:{found['format']}-->"

    return FIGURE.sub(figure, text)


def measured(path: Path) -> dict[str, Any]:
    """A run's results.json, with the benchmarks' beside it."""
    benchmarks = {each.stem: json.loads(each.read_text()) for each in (ROOT / "benchmarks").rglob("*.json")}
    return benchmarks | json.loads(path.read_text(encoding="utf-8"))


def fill_notebook(notebook: nbformat.NotebookNode, results: dict[str, Any]) -> None:
    """The figures of every text cell, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results)


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Of the code cells' sources, SHA-256 in hexadecimal digits."""
    return hashlib.sha256(json.dumps([cell.source for cell in _code(notebook)]).encode()).hexdigest()


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def take(run: Path) -> None:
    """A run's outputs and results.json to the project's root; the prose stays as it is there.

    Raises:
        TutorialError: the run was of other code cells, or of another task or size than the page's.
    """
    notebook, ran = (nbformat.read(path, as_version=4) for path in (PAGE, run / "README.ipynb"))
    if code_hash(ran) != code_hash(notebook):
        raise TutorialError(f"{run.name}/README.ipynb was made by other code cells; `make run` first")
    results = json.loads((run / "README.json").read_text(encoding="utf-8"))
    found = (results["task"], results["profile"], results["data"]["used"])
    rows = read_yaml(ROOT / "profiles" / "cpu.yaml")["rows"]
    if found != ("viggo", "cpu", rows):
        raise TutorialError(f"{run.name}/README.ipynb is a run of {found}, not the page's; `make run` first")
    for cell, done in zip(_code(notebook), _code(ran), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    shutil.copy(run / "README.json", ROOT / "results.json")
    notebook.metadata["tutorial"] = {"run": results["stamp"], "code": code_hash(notebook)}
    nbformat.write(notebook, PAGE)


def main() -> None:
    """The last run's outputs, if there is one, and the figures in the prose."""
    try:
        if (ROOT / "out" / "README.json").is_file():
            take(ROOT / "out")
    except TutorialError as error:
        sys.exit(str(error))
    notebook = nbformat.read(PAGE, as_version=4)
    fill_notebook(notebook, measured(ROOT / "results.json"))
    nbformat.write(notebook, PAGE)


if __name__ == "__main__":
    main()
