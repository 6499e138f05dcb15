"""`make page`: the page takes the last run's outputs, and the figures in its prose are filled in.

A figure in the prose is followed by a comment that no reader sees, with its place in results.json and its
format: `0.683<!--=batch/scores/fine-tuned/exact match/value:.3f-->`. A place that begins with the name of a
JSON file below benchmarks/ is in that file; -1 is the last item of a list.
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
# A number with its sign, or (none). The hyphen of `3-5` is not a sign.
NUMBER = r"(?:(?<![\w.%)])[+-])?\d[\d.,]*(?:e[+-]\d+)?%?|\(none\)"
FIGURE = re.compile(rf"(?:{NUMBER})?<!--=(?P<key>[^:>]+):(?P<format>[^>]*)-->")


def fill(text: str, results: dict[str, Any]) -> str:
    """The text with every figure as `results` has it, or `(none)` if this run does not have it."""

    def item(part: Any, key: str) -> Any:
        return part[int(key)] if isinstance(part, list) else part[key]

    def figure(found: re.Match) -> str:
        try:
            value = format(reduce(item, found["key"].split("/"), results), found["format"])
        except (KeyError, IndexError, TypeError):
            value = "(none)"  # a task of plain text has no guided answers
        return f"{value}<!--={found['key']}:{found['format']}-->"

    return FIGURE.sub(figure, text)


def measured(path: Path, benchmarks: Path = ROOT / "benchmarks") -> dict[str, Any]:
    """A run's results.json, with each JSON file below `benchmarks` under its name.

    Raises:
        TutorialError: a file has the name of another one or of a key of results.json, and would be hidden.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    for each in sorted(benchmarks.rglob("*.json")):
        if each.stem in found:
            raise TutorialError(f"{each}: another file, or a key of {path.name}, is named {each.stem!r} too")
        found[each.stem] = json.loads(each.read_text(encoding="utf-8"))
    return found


def fill_notebook(notebook: nbformat.NotebookNode, results: dict[str, Any]) -> None:
    """Fill in the figures of every text cell, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results)


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells' sources, in hexadecimal digits."""
    return hashlib.sha256(json.dumps([cell.source for cell in _code(notebook)]).encode()).hexdigest()


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def take(run: Path) -> None:
    """Copy a run's outputs and results.json to the project's root. The prose there stays as it is.

    Raises:
        TutorialError: the run had other code cells, or another task or size than the page's.
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
    """Take the last run's outputs, if there is one, and fill in the figures of the prose."""
    try:
        if (ROOT / "out" / "README.json").is_file():
            take(ROOT / "out")
        notebook = nbformat.read(PAGE, as_version=4)
        fill_notebook(notebook, measured(ROOT / "results.json"))
    except TutorialError as error:
        sys.exit(str(error))
    nbformat.write(notebook, PAGE)


if __name__ == "__main__":
    main()
