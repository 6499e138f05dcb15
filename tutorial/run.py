"""`make run`: execute README.ipynb into out/README.ipynb, saying on the way which stage it is in.

Benchmarks and tests use single cells, by their ids: `define("train-loop")["train_loop"]`.
"""

import re
import runpy
import shutil
import sys
import tempfile
import threading
import time
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console
from rich.live import Live
from rich.text import Text
from traitlets.config import Config

from tutorial import PRINTED_S, PROGRESS, cluster
from tutorial.settings import ROOT

README = ROOT / "README.ipynb"


def cells() -> dict[str, str]:
    """The source of each of README.ipynb's code cells, by the cell's id, in order."""
    notebook = nbformat.read(README, as_version=4)
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def define(*ids: str, **names: Any) -> dict[str, Any]:
    """Execute the cells with these ids among the given names; all names there are afterwards.

    KeyError if README.ipynb has no code cell with such an id.
    """
    sources = cells()
    names = {"__name__": "__main__"} | names  # what `__main__` defines goes to Ray's workers by value
    for code in [compile(sources[each], f"README.ipynb, cell {each}", "exec") for each in ids]:
        exec(code, names)  # noqa: S102  the project's own cells
    return names


class Terminal:
    """What `make run` says: lines that stay and, below them, one that is replaced.

    Without a terminal, or in one that cannot replace a line, this one is printed again every few seconds.
    Enter it around the run: whatever ends the run ends the line.
    """

    def __init__(self):
        self._console = Console(highlight=False)
        self._stage, self._now, self._bar, self._rest = "", "the kernel starts", "", ""
        self._start = self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print_again, daemon=True)
        options = {"refresh_per_second": 1, "transient": True}
        self._live = Live(console=self._console, get_renderable=lambda: self._stamped(self._now), **options)
        self._replaces = self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> "Terminal":
        (self._live if self._replaces else self._thread).start()
        return self

    def __exit__(self, *error) -> None:
        self.end()
        self._live.stop()
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def say(self, text: str, stamp: bool = False) -> None:
        """Print a line that stays; with the seconds since the start if `stamp`."""
        self._said = time.monotonic()
        self._console.print(self._stamped(text) if stamp else Text(text), soft_wrap=True)

    def start(self, cell: nbformat.NotebookNode, **_: int) -> None:
        """Begin a cell; a heading with a number begins a stage. A hook of nbclient's."""
        heading = cell.source.partition("\n")[0]
        if cell.cell_type == "markdown" and re.match(r"## \d", heading):
            self._stage = heading.removeprefix("## ")
            self._replace(self._stage)
            self.say(self._stage, stamp=True)
        elif cell.cell_type == "code":
            self._replace(f"{self._stage}: {cell.id}")

    def hear(self, message: dict[str, Any]) -> None:
        """Show what a cell prints, and the state of its progress line: a message of the notebook's kernel."""
        content = message["content"]
        if message["msg_type"] == "stream":
            *lines, self._rest = (self._rest + content["text"]).split("\n")
            for line in lines:
                self.say(f"    {line}")
        elif str((content.get("transient") or {}).get("display_id")).startswith(PROGRESS):
            self._bar = content["data"]["text/plain"]
            self._replace(self._bar)

    def end(self, **_: Any) -> None:
        """End a cell: the last state of its progress line stays, and what it printed without a line's end."""
        if self._rest:
            self.say(f"    {self._rest}")
        if self._bar:
            self.say(self._bar, stamp=True)
        self._rest = self._bar = ""

    def _replace(self, text: str) -> None:
        self._now = text
        if self._live.is_started:
            self._live.refresh()

    def _print_again(self) -> None:
        while not self._over.wait(1):
            if time.monotonic() - self._said >= PRINTED_S:
                self.say(self._now, stamp=True)

    def _stamped(self, text: str) -> Text:
        line = f"[{time.monotonic() - self._start:4.0f} s] {text}"
        return Text(line, no_wrap=True, overflow="ellipsis")


class Client(NotebookClient):
    """nbclient's, which shows on a terminal what the kernel says."""

    terminal: Terminal

    def process_message(self, msg, cell, cell_index):
        """nbclient's hook for each message."""
        self.terminal.hear(msg)
        return super().process_message(msg, cell, cell_index)


def execute(notebook: nbformat.NotebookNode, terminal: Terminal) -> None:
    """Run every cell in one kernel, in the project's root. The kernel listens on no port, not even on
    loopback: its sockets are in a folder that ends with it. CellExecutionError if a cell fails.
    """
    cluster.keep_local()  # the kernel's own folders too
    with tempfile.TemporaryDirectory() as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel", "connection_file": f"{sockets}/kernel.json"}
        client = Client(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(ROOT)}},
            on_cell_start=terminal.start,
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
