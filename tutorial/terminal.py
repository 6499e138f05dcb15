"""What `make run` says: lines that stay and, below them, one that is replaced.

Without a terminal, or in one that cannot replace a line, the last line is printed again every few seconds.
"""

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tutorial import PRINTED_S, PROGRESS


class Terminal:
    """Enter it around the run: whatever ends the run ends the line that is replaced."""

    def __init__(self):
        self._console = Console(highlight=False)
        replaces = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if replaces else None
        self._stage, self._now, self._bar, self._rest = "", "the kernel starts", "", ""
        self._start = self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Terminal":
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.end()
        self._over.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def say(self, text: str, stamp: bool = False) -> None:
        """Print a line that stays; with the seconds since the start if `stamp`."""
        self._said = time.monotonic()
        self._console.print(self._stamped(text) if stamp else Text(text), soft_wrap=True)

    def stage(self, heading: str) -> None:
        """Begin a stage."""
        self._stage = heading
        self._replace(heading)
        self.say(heading, stamp=True)

    def now(self, cell: str) -> None:
        """Begin a cell."""
        self._replace(f"{self._stage}: {cell}")

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

    def end(self, **cell: Any) -> None:
        """End a cell: the last state of its progress line stays, and what it printed without a line's end."""
        if self._rest:
            self.say(f"    {self._rest}")
        if self._bar:
            self.say(self._bar, stamp=True)
        self._rest = self._bar = ""

    def _replace(self, text: str) -> None:
        self._now = text
        if self._live:
            self._live.update(self._stamped(text), refresh=True)

    def _follow(self) -> None:
        while not self._over.wait(1):
            if self._live:
                self._replace(self._now)
            elif self._now and time.monotonic() - self._said >= PRINTED_S:
                self.say(self._now, stamp=True)

    def _stamped(self, text: str) -> Text:
        line = f"[{time.monotonic() - self._start:4.0f} s] {text}"
        return Text(line, no_wrap=True, overflow="ellipsis")
