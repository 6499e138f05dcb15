"""`make run`: execute README.ipynb into out/README.ipynb, saying on the way which stage it is in.

Benchmarks and tests use single cells, by their ids: `define("train-loop")["train_loop"]`.
"""

import asyncio
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from tutorial import cluster, summary
from tutorial.settings import ROOT
from tutorial.terminal import Terminal

README = ROOT / "README.ipynb"
interrupted = threading.Event()  # by Ctrl-C; Python's own KeyboardInterrupt is lost if an import meets it
AGAIN_S = 5  # between two interrupts of a cell; at the third, Ray Train ends without a word to its workers
ENDS_S = 120  # after Ctrl-C, for the kernel to stop Ray and the S3 server, and delete its files


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


class Client(NotebookClient):
    """nbclient's, which shows on a terminal what the kernel says, and passes Ctrl-C on to the cell."""

    terminal: Terminal
    running = False  # a cell
    sent: asyncio.Task | None = None

    async def async_start_new_kernel(self, **kwargs):
        """nbclient's, which has just set a handler of its own for Ctrl-C: it would end the kernel at once."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        await super().async_start_new_kernel(**kwargs)

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        """nbclient's, unless the run was interrupted before."""
        if interrupted.is_set():
            raise RuntimeError("interrupted")
        self.running = True
        try:
            return await super().async_execute_cell(cell, cell_index, **kwargs)
        finally:
            self.running = False
            if self.sent:
                self.sent.cancel()
                await asyncio.sleep(1)  # nbclient interrupts the kernel too: not while it ends the cell

    def process_message(self, msg, cell, cell_index):
        """nbclient's hook for each message."""
        if not interrupted.is_set():
            self.terminal.hear(msg, cell.id)
        return super().process_message(msg, cell, cell_index)

    def _interrupt(self) -> None:
        interrupted.set()
        self.terminal.wait("interrupted: Ray and the S3 server end")
        if self.running and not self.sent:
            self.km.shutdown_wait_time = ENDS_S
            self.sent = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        while True:  # until the cell ends: a kernel that has not begun it ignores the first
            await self.km.interrupt_kernel()
            await asyncio.sleep(AGAIN_S)


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for all that a run would leave in /tmp. If a cell fails, Ray's logs and the like are kept."""
    folder, kept = Path(tempfile.mkdtemp(prefix="tutorial-")), False
    try:
        yield folder
    except Exception:
        kept = any(folder.iterdir())
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def execute(notebook: nbformat.NotebookNode, terminal: Terminal) -> None:
    """Run every cell in one kernel, in the project's root. The kernel listens on no port, not even on
    loopback: its sockets are in a folder that ends with it.

    Raises:
        CellExecutionError: a cell fails.
        KeyboardInterrupt: after Ctrl-C, when the kernel has ended.
    """
    cluster.keep_local()  # the kernel's own folders too
    short = "/tmp" if len(tempfile.gettempdir()) > 80 else None  # noqa: S108  a socket's path has at most 107
    with temporary() as folder, tempfile.TemporaryDirectory(prefix="tutorial-", dir=short) as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel", "connection_file": f"{folder}/kernel.json"}
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
        # The address of a cluster that runs already is in the folder that it was started with.
        own = {} if cluster.joins() else {"TMPDIR": str(folder)}
        try:
            client.execute(env=os.environ | own)
        except Exception as error:
            if interrupted.is_set():  # whatever this has led to
                raise KeyboardInterrupt from error
            raise


def main() -> None:
    """The notebook, stage by stage; an error stands last, in one line."""
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
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
        results = json.loads(figures.read_text(encoding="utf-8"))
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(summary.about(results)))
    except CellExecutionError as error:
        if error.ename != "TutorialError":
            print(error.traceback, file=sys.stderr)
        sys.exit(f"{error.ename}: {(error.evalue.splitlines() or [''])[0]}")
    except KeyboardInterrupt:
        resume = "if STORAGE and RUN_NAME are set, RESUME=1 resumes the run"
        print(f"interrupted; {resume}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        out.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, out)
    terminal.show(summary.scores(results))
    terminal.say("done: out/README.ipynb, and its figures in out/results.json", stamp=True)


if __name__ == "__main__":
    main()
