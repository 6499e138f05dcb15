"""`make page`: the last run becomes the page, and the figures in its prose those of its results.

A figure in the prose is followed by its place in results.json and its format, in a comment that no reader
sees: `0.683<!--=batch/scores/fine-tuned/exact match/value:.3f-->`.
"""

import json
import re
import shutil
from functools import reduce
from typing import Any

import nbformat

from tutorial.settings import ROOT

FIGURE = re.compile(r"[\w.,()-]+<!--=(?P<key>[^:>]+):(?P<format>[^>]*)-->")


def fill(text: str, results: dict[str, Any]) -> str:
    """The text with every figure as `results` has it, `(none)` for one that this run does not have."""

    def figure(found: re.Match) -> str:
        try:
            value = format(
                reduce(lambda part, key: part[key], found["key"].split("/"), results), found["format"]
            )
        except KeyError:
            value = "(none)"  # a task of plain text has no guided answers
        return f"{value}<!--={found['key']}:{found['format']}-->"

    return FIGURE.sub(figure, text)


def fill_notebook(notebook: nbformat.NotebookNode, results: dict[str, Any]) -> None:
    """The figures of every text cell, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results)


def main() -> None:
    """out/README.ipynb and out/results.json, with the figures filled in, to the project's root."""
    shutil.copy(ROOT / "out" / "results.json", ROOT / "results.json")
    results = json.loads((ROOT / "results.json").read_text(encoding="utf-8"))
    notebook = nbformat.read(ROOT / "out" / "README.ipynb", as_version=4)
    fill_notebook(notebook, results)
    nbformat.write(notebook, ROOT / "README.ipynb")


if __name__ == "__main__":
    main()
