"""Cells of README.ipynb as a program: `python -m tests.drive '["cell-02", "print(1)"]'`.

Each item is the id of a code cell, or code of a test's own that runs between them, among the same names. A
`TutorialError` ends the program with its one line, as `make run` does.
"""

import json
import sys

import nbformat

from tests.conftest import ROOT
from tutorial import TutorialError

SET_UP = ["cell-01b", "cell-02", "cell-04", "cell-06", "cell-08"]
TRAIN = [*SET_UP, "cell-10", "cell-12", "cell-14", "cell-16", "cell-18"]
# The base model alone, which needs no training.
UNTRAINED = [
    "llamafactory_args, EXAMPLES, adapter = {'lora_rank': 8}, [], 'none'",
    "store.publish('.', 'adapters', [])",
]
BATCH = [
    *SET_UP,
    *UNTRAINED,
    "cell-26",
    "cell-26b",
    "SYSTEMS = {'base model': SYSTEMS['base model']}",
    "cell-26d",
]
END = ["with quiet.reports(): ray.shutdown()", "store.close()"]


def main() -> None:
    """Run what the command line names."""
    notebook = nbformat.read(ROOT / "README.ipynb", as_version=4)
    cells = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    names = {"__name__": "__main__"}  # what is defined there goes to Ray's workers by value
    try:
        for item in json.loads(sys.argv[1]):
            exec(compile(cells.get(item, item), item, "exec"), names)  # noqa: S102  the project's own cells
    except TutorialError as error:
        sys.exit(f"TutorialError: {error}")


if __name__ == "__main__":
    main()
