"""A sign of life while a long call runs: one line that says how far it is.

In a notebook the line is an output of its cell that is replaced, and its last state stays. `make run` shows
it in the terminal, below what the cells print. Any other program prints it every few seconds.
"""

import contextvars
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from json import JSONDecodeError

import pyarrow.parquet
from pyarrow import ArrowInvalid
from tqdm import tqdm

from tutorial import PRINTED_S, PROGRESS, cluster, one_line
from tutorial.files import Place

STALLED_S = 20  # after so many seconds without a step the line says so


class Line:
    """One line of text that is replaced: a display of the notebook, or printed lines elsewhere."""

    def __init__(self):
        self._display, self._printed = None, time.monotonic()

    def show(self, text: str) -> None:
        """Replace the line by this text."""
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self._display is None:
                self._display = f"{PROGRESS}-{id(self)}"
                display({"text/plain": text}, raw=True, display_id=self._display)
            else:
                display({"text/plain": text}, raw=True, display_id=self._display, update=True)
        elif time.monotonic() - self._printed >= PRINTED_S:
            self._printed = time.monotonic()
            print(text, flush=True)


@contextmanager
def watch(look: Callable[[], str], every_s: float = 1) -> Iterator[None]:
    """Around a long call: show what `look` returns, from a thread, and once more if the call went well.

    `look` may fail while what it looks at starts or ends. The line then says why, and the call goes on.
    """
    line, over = Line(), threading.Event()

    def show() -> None:
        try:
            text = look()
        except Exception as error:  # of the storage or of Ray; whoever waits for the call gets its own error
            text = f"progress is unknown: {one_line(error)}"
        line.show(text)

    def follow() -> None:
        show()
        while not over.wait(every_s):
            show()

    # A notebook knows by the context which cell a thread's displays belong to.
    thread = threading.Thread(target=contextvars.copy_context().run, args=[follow], daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    show()


def training(note: Place, rows: int) -> AbstractContextManager[None]:
    """Around `fit()`: steps, time left, the loss and rows a second, as `callbacks.Progress` notes them.

    Args:
        note: the file in the storage that it writes.
        rows: of the training split.
    """
    start = changed = time.monotonic()
    first = last = None

    def look() -> str:
        nonlocal first, last, changed
        with suppress(JSONDecodeError):  # it is being written
            now = json.loads(note.read()) if note.exists() else {}
            first = now if first is None else first  # an earlier run's, which this one resumes
            if now != last:
                last, changed = now, time.monotonic()
        if last == first:
            return f"fine-tuning: the workers start, {_since(start)}"
        epochs, elapsed = last["epoch"] - last["first_epoch"], last["seconds"]
        more = [f"loss {last['loss']:.3f}"] if "loss" in last else []
        more += [f"{epochs * rows / elapsed:.1f} rows/s"] if epochs and elapsed else []
        if last["step"] < last["steps"] and time.monotonic() - changed > STALLED_S:
            more += [f"no step for {_since(changed)}"]
        return tqdm.format_meter(
            last["step"],
            last["steps"],
            elapsed,
            prefix="fine-tuning",
            unit=" steps",
            initial=last["first_step"],
            postfix=", ".join(more),
        )

    return watch(look)


def batch(answers: Place, total: int) -> AbstractContextManager[None]:
    """Around the call that writes the answers: how many of `total` rows are in the Parquet files there."""
    start = time.monotonic()
    counted: dict[str, int] = {}
    before = None

    def look() -> str:
        nonlocal before
        for name in answers.listing().keys() - counted.keys():
            with suppress(ArrowInvalid):  # it is being written
                file = (answers / name).path
                counted[name] = pyarrow.parquet.read_metadata(file, filesystem=answers.files).num_rows
        done = sum(counted.values())
        before = done if before is None else before  # an earlier run's, which this one resumes
        if done == before < total:
            return f"batch inference: {done} of {total} rows, the engine starts, {_since(start)}"
        elapsed = time.monotonic() - start
        return tqdm.format_meter(done, total, elapsed, prefix="batch inference", unit=" rows", initial=before)

    return watch(look)


def serving(application: str) -> AbstractContextManager[None]:
    """Around the wait for an application of Ray Serve: what its replicas do and, if they run on this machine,
    the last line of the engine's log."""
    from ray import serve

    start, session = time.monotonic(), cluster.session_folder()

    def look() -> str:
        parts = []
        status = serve.status().applications[application]
        for name, deployment in status.deployments.items():
            states = [
                f"{count} {state.lower()}" for state, count in deployment.replica_states.items() if count
            ]
            parts += [f"{name.split(':')[0]} {' and '.join(states) or deployment.status.lower()}"]
        written = session.glob(f"logs/serve/replica_{application}_LLMServer*.log") if session else []
        if status.status == "DEPLOYING" and (newest := max(written, key=os.path.getmtime, default=None)):
            parts += newest.read_text(errors="replace").strip().rpartition(" -- ")[2].splitlines()[:1]
        return f"online serving: {', '.join([status.status.lower(), *parts, _since(start)])}"

    return watch(look)


def _since(start: float) -> str:
    return tqdm.format_interval(time.monotonic() - start)
