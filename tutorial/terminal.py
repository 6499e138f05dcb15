"""What `make run` says in a terminal, or without one."""

import re
import threading
import time
from typing import Any

import nbformat
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from tutorial import PRINTED_S, PROGRESS

SHOWN = ("rows",)  # cells whose tables are shown here too


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
        if self._replaces:
            self._live.start(refresh=True)  # else the first second shows nothing
        else:
            self._thread.start()
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

    def show(self, table: str) -> None:
        """Print a table that is written in Markdown."""
        self._said = time.monotonic()
        self._console.print(Markdown(table))

    def start(self, cell: nbformat.NotebookNode, **_: int) -> None:
        """Begin a cell; a heading with a number begins a stage. A hook of nbclient's."""
        heading = cell.source.partition("\n")[0]
        if cell.cell_type == "markdown" and re.match(r"## \d", heading):
            self._stage = heading.removeprefix("## ")
            self.wait(self._stage)
            self.say(self._stage, stamp=True)
        elif cell.cell_type == "code":
            self.wait(f"{self._stage}: {cell.id}")

    def hear(self, message: dict[str, Any], cell: str) -> None:
        """Show what a cell prints, the state of its progress line, and the tables of `SHOWN`.

        It is told by a message of the notebook's kernel, and the cell's id.
        """
        content = message["content"]
        if message["msg_type"] == "stream":
            *lines, self._rest = (self._rest + content["text"]).split("\n")
            for line in lines:
                self.say(f"    {line}")
        elif str((content.get("transient") or {}).get("display_id")).startswith(PROGRESS):
            self._bar = content["data"]["text/plain"]
            self.wait(self._bar)
        elif cell in SHOWN and (table := content.get("data", {}).get("text/markdown")):
            self.show(table)

    def end(self, **_: Any) -> None:
        """End a cell: the last state of its progress line stays, and what it printed without a line's end."""
        if self._rest:
            self.say(f"    {self._rest}")
        if self._bar:
            self.say(self._bar, stamp=True)
        self._rest = self._bar = ""

    def wait(self, text: str) -> None:
        """Replace the line that is replaced."""
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
