"""`make page`: the page takes the last run's outputs, and the figures in its prose are filled in.

`docs/figures.yaml` names the sentences of README.ipynb that hold figures, and where each figure is measured:
`{batch/scores/fine-tuned/exact match/value:.0%}` is a place in results.json and a format. A place that begins
with the name of a JSON file below benchmarks/ is in that file. -1 is a list's last item. The format `min`
gives minutes of seconds.
"""

import copy
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
FIGURES = ROOT / "docs" / "figures.yaml"
NUMBER = r"-?\d[\d.,]*\d%?|-?\d%?|\(none\)"
FIELD = re.compile(r"\{(?P<key>[^:}]+):(?P<format>[^}]*)\}")


def sentences() -> list[str]:
    """The sentences of the prose that hold figures."""
    return read_yaml(FIGURES)["measured"]


def pattern(sentence: str) -> re.Pattern:
    """Finds a sentence in a text, whatever its figures are and wherever its lines break."""
    places = [re.sub(r"(\\ )+", r"\\s+", re.escape(text)) for text in FIELD.sub("\0", sentence).split("\0")]
    return re.compile(f"({NUMBER})".join(places))


def fill(text: str, sentence: str, results: dict[str, Any]) -> str:
    """The text with a sentence's figures as `results` has them, or `(none)` if this run does not have one."""

    def item(part: Any, key: str) -> Any:
        return part[int(key)] if isinstance(part, list) else part[key]

    def figure(field: re.Match) -> str:
        try:
            value = reduce(item, field["key"].split("/"), results)
        except (KeyError, IndexError, TypeError):
            return "(none)"  # a run without a killed worker, say
        return f"{value / 60:.0f}" if field["format"] == "min" else format(value, field["format"])

    figures = [figure(field) for field in FIELD.finditer(sentence)]

    def filled(found: re.Match) -> str:
        whole, start = found[0], found.start()
        for number, value in reversed([*enumerate(figures, start=1)]):
            begin, end = (place - start for place in found.span(number))
            whole = whole[:begin] + value + whole[end:]
        return whole

    return pattern(sentence).sub(filled, text)


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
    """Fill in the figures of every text cell, in place.

    Raises:
        TutorialError: a sentence of `FIGURES` does not stand in the prose, or more than once.
    """
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for sentence in sentences():
        found = [cell for cell in prose if pattern(sentence).search(cell.source)]
        if len(found) != 1:
            raise TutorialError(f"{FIGURES.name}: {len(found)} cells of README.ipynb have {sentence!r}")
        found[0].source = fill(found[0].source, sentence, results)


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells' sources, in hexadecimal digits."""
    return hashlib.sha256(json.dumps([cell.source for cell in _code(notebook)]).encode()).hexdigest()


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _whole(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """A cell's outputs, in which what it printed in pieces is one output, as Jupyter shows it."""
    found = []
    for output in outputs:
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(copy.copy(output))
    return found


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
        cell.outputs, cell.execution_count = _whole(done.outputs), done.execution_count
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
