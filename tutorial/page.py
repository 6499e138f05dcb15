"""`make page`: the last run becomes the page, and the figures in its prose those of its results.

A figure in the prose is followed by its place in results.json and its format, in a comment that no reader
sees: `0.683<!--=batch/scores/fine-tuned/exact match/value:.3f-->`. A place that begins with the name of a
benchmark is in its JSON, and -1 is a list's last item.
"""

import hashlib
import json
import re
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import nbformat

from tutorial.settings import ROOT

FIGURE = re.compile(r"[\w.,()-]+<!--=(?P<key>[^:>]+):(?P<format>[^>]*)-->")


def fill(text: str, results: dict[str, Any]) -> str:
    """The text with every figure as `results` has it, `(none)` for one that this run does not have."""

    def item(part: Any, key: str) -> Any:
        return part[int(key)] if isinstance(part, list) else part[key]

    def figure(found: re.Match) -> str:
        try:
            value = format(reduce(item, found["key"].split("/"), results), found["format"])
        except KeyError:
            value = "(none)"  # a task of plain text has no guided answers
        return f"{value}<!--={found['key']}:{found['format']}-->"

    return FIGURE.sub(figure, text)


def measured(path: Path) -> dict[str, Any]:
    """A run's results.json, with the benchmarks' beside it."""
    benchmarks = {each.stem: json.loads(each.read_text()) for each in (ROOT / "benchmarks").glob("*.json")}
    return benchmarks | json.loads(path.read_text(encoding="utf-8"))


def fill_notebook(notebook: nbformat.NotebookNode, results: dict[str, Any]) -> None:
    """The figures of every text cell, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results)


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Of the code cells' sources, SHA-256 in hexadecimal digits."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def main() -> None:
    """out/README.ipynb and out/results.json, with the figures filled in and a stamp of the run, to the
    project's root."""
    shutil.copy(ROOT / "out" / "results.json", ROOT / "results.json")
    notebook = nbformat.read(ROOT / "out" / "README.ipynb", as_version=4)
    results = measured(ROOT / "results.json")
    fill_notebook(notebook, results)
    notebook.metadata["tutorial"] = {"run": results["stamp"], "code": code_hash(notebook)}
    nbformat.write(notebook, ROOT / "README.ipynb")


if __name__ == "__main__":
    main()
