"""`make run`: execute README.ipynb into out/README.ipynb, saying on the way which stage it is in."""

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from docs import page
from tutorial.settings import ROOT


def execute(notebook: nbformat.NotebookNode, on_cell_start: Callable[..., None] | None = None) -> None:
    """Run every cell in one kernel, in the project's root. The kernel listens on no port, not even on
    loopback: its sockets are in a folder that ends with it.

    Raises:
        CellExecutionError: a cell failed.
    """
    with tempfile.TemporaryDirectory() as sockets:
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(ROOT)}},
            on_cell_start=on_cell_start,
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
        ).execute()


def main() -> None:
    """The notebook, stage by stage; a mistake in a setting ends it with one line."""
    notebook = nbformat.read(ROOT / "README.ipynb", as_version=4)
    start = time.monotonic()
    (ROOT / "out" / "README.json").unlink(missing_ok=True)  # a run that fails leaves nothing for `make page`

    def say_stage(cell, cell_index):
        heading = cell.source.splitlines()[0] if cell.source else ""
        if cell.cell_type == "markdown" and re.match(r"## \d", heading):
            print(f"[{time.monotonic() - start:4.0f} s] {heading.removeprefix('## ')}", flush=True)

    try:
        execute(notebook, say_stage)
        shutil.copy(ROOT / "out" / "results.json", ROOT / "out" / "README.json")  # `make test` writes others
        page.fill_notebook(notebook, page.measured(ROOT / "out" / "README.json"))
    except CellExecutionError as error:
        if error.ename == "TutorialError":
            sys.exit(f"{error.ename}: {error.evalue}")
        raise
    finally:
        out = ROOT / "out" / "README.ipynb"
        out.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, out)
    print(f"[{time.monotonic() - start:4.0f} s] done: out/README.ipynb, and its figures in out/results.json")


if __name__ == "__main__":
    main()
