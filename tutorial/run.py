"""`make run`: execute README.ipynb into out/README.ipynb, saying on the way which stage it is in.

Benchmarks and tests use single cells, by their ids: `define("train-loop")["train_loop"]`.
"""

import re
import runpy
import shutil
import sys
import tempfile
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from tutorial import cluster
from tutorial.settings import ROOT
from tutorial.terminal import Terminal

README = ROOT / "README.ipynb"


def cells() -> dict[str, str]:
    """The source of each of README.ipynb's code cells, by the cell's id, in order."""
    notebook = nbformat.read(README, as_version=4)
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def define(*ids: str, **names: Any) -> dict[str, Any]:
    """Execute the cells with these ids among the given names; all names there are afterwards.

    Raises:
        KeyError: README.ipynb has no code cell with this id.
    """
    sources = cells()
    names = {"__name__": "__main__"} | names  # what `__main__` defines goes to Ray's workers by value
    for code in [compile(sources[each], f"README.ipynb, cell {each}", "exec") for each in ids]:
        exec(code, names)  # noqa: S102  the project's own cells
    return names


class Client(NotebookClient):
    """nbclient's, which shows on a terminal what the kernel says."""

    terminal: Terminal

    def process_message(self, msg, cell, cell_index):
        """nbclient's hook for each message."""
        self.terminal.hear(msg)
        return super().process_message(msg, cell, cell_index)


def execute(notebook: nbformat.NotebookNode, terminal: Terminal) -> None:
    """Run every cell in one kernel, in the project's root. The kernel listens on no port, not even on
    loopback: its sockets are in a folder that ends with it. The terminal says which stage and cell it is in.

    Raises:
        CellExecutionError: a cell failed.
    """

    def start(cell, cell_index):
        heading = cell.source.splitlines()[0] if cell.source else ""
        if cell.cell_type == "markdown" and re.match(r"## \d", heading):
            terminal.stage(heading.removeprefix("## "))
        elif cell.cell_type == "code":
            terminal.now(cell.id)

    cluster.keep_local()  # the kernel's own folders too
    with tempfile.TemporaryDirectory() as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel", "connection_file": f"{sockets}/kernel.json"}
        client = Client(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(ROOT)}},
            on_cell_start=start,
            on_cell_executed=terminal.end,
            config=Config({"KernelManager": manager}),
        )
        client.terminal = terminal
        client.execute()


def main() -> None:
    """The notebook, stage by stage; an error stands last, in one line."""
    notebook = nbformat.read(README, as_version=4)
    out = ROOT / "out" / README.name
    figures = out.with_suffix(".json")
    figures.unlink(missing_ok=True)  # a run that fails leaves nothing for `make page`
    try:
        with Terminal() as terminal:
            execute(notebook, terminal)
        shutil.copy(out.with_name("results.json"), figures)  # `make test` writes another results.json
        if (page := ROOT / "docs" / "page.py").is_file():  # a job may come without docs/
            made = runpy.run_path(str(page))
            made["fill_notebook"](notebook, made["measured"](figures))
    except CellExecutionError as error:
        if error.ename != "TutorialError":
            print(error.traceback, file=sys.stderr)
        sys.exit(f"{error.ename}: {(error.evalue.splitlines() or [''])[0]}")
    finally:
        out.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, out)
    terminal.say("done: out/README.ipynb, and its figures in out/results.json", stamp=True)


if __name__ == "__main__":
    main()
