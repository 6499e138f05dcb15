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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import pyarrow.parquet
from pyarrow import ArrowInvalid
from tqdm import tqdm

from tutorial import PRINTED_S, PROGRESS, cluster, one_line
from tutorial.files import Place

NOTE = "training-progress.json"  # in a run's folder of the storage
STALLED_S = 20  # after so many seconds without a step the line says so


class Line:
    """One line of text that is replaced: a display of the notebook, or printed lines elsewhere."""

    def __init__(self):
        self._shown, self._printed = False, time.monotonic()

    def show(self, text: str) -> None:
        """Replace the line by this text."""
        if "ipykernel" in sys.modules:
            from IPython.display import display

            display({"text/plain": text}, raw=True, display_id=f"{PROGRESS}-{id(self)}", update=self._shown)
            self._shown = True
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
        while not over.is_set():
            show()
            over.wait(every_s)

    # A notebook knows by the context which cell a thread's displays belong to.
    thread = threading.Thread(target=contextvars.copy_context().run, args=[follow], daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    show()


def around(stage: str, place: Place, results: dict[str, Any]) -> AbstractContextManager[None]:
    """`training` or `batch` around the stage of this name; nothing around another one."""
    if stage == "fine-tuning":
        return training(place, results["data"]["used"]["train"])
    return batch(place) if stage == "batch inference" else nullcontext()


def training(place: Place, rows: int) -> AbstractContextManager[None]:
    """Around `fit()`: steps, time left, the loss and rows a second, as `callbacks.Progress` notes them.

    The place is the run's folder in the storage, the rows are those of the training split.
    """
    note = place / NOTE
    start = changed = time.monotonic()
    first = last = None

    def look() -> str:
        nonlocal first, last, changed
        with suppress(json.JSONDecodeError):  # it is being written
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
        steps = (last["first_step"], last["step"], last["steps"])
        return _bar("fine-tuning", "steps", steps, elapsed, ", ".join(more))

    return watch(look)


def batch(place: Place) -> AbstractContextManager[None]:
    """Around batch inference: how many of the rows in `place / "questions"` are in `place / "answers"`, both
    folders of Parquet files."""
    start = time.monotonic()
    counted: dict[str, int] = {}
    before = begun = None

    def rows(folder: str) -> int:
        for name in (place / folder).listing():
            file = (place / folder / name).path
            if file not in counted:
                with suppress(ArrowInvalid):  # it is being written
                    counted[file] = pyarrow.parquet.read_metadata(file, filesystem=place.files).num_rows
        return sum(count for file, count in counted.items() if file.startswith((place / folder).path))

    def look() -> str:
        nonlocal before, begun
        done, total, now = rows("answers"), rows("questions"), time.monotonic()
        before = done if before is None else before  # an earlier run's, which this one resumes
        if done == before < total or not total:
            rows_done = f"{done} of {total} rows, " if total else ""  # the questions are being written
            return f"batch inference: {rows_done}the engine starts and answers, {_since(start)}"
        begun = begun or (done, now)  # the time until the first rows is mostly the start of the engine
        first, since = begun if done < total else (before, start)
        speed = f"{(done - first) / (now - since):.1f} rows/s" if done > first else ""
        return _bar("batch inference", "rows", (first, done, total), now - since, speed)

    return watch(look)


def serving(application: str) -> AbstractContextManager[None]:
    """Around the wait for an application of Ray Serve: what its replicas do and, if they run on this machine,
    the last line of the engine's log."""
    from ray import serve

    start, session = time.monotonic(), cluster.session_folder()

    def look() -> str:
        status = serve.status().applications[application]
        parts = [status.status.lower()]
        for name, deployment in status.deployments.items():
            counts = ((count, state.lower()) for state, count in deployment.replica_states.items() if count)
            states = [f"{count} {state}" for count, state in counts]
            parts += [f"{name.split(':')[0]} {' and '.join(states) or deployment.status.lower()}"]
        written = session.glob(f"logs/serve/replica_{application}_LLMServer*.log") if session else []
        if status.status == "DEPLOYING" and (newest := max(written, key=os.path.getmtime, default=None)):
            parts += newest.read_text(errors="replace").strip().rpartition(" -- ")[2].splitlines()[:1]
        return f"online serving: {', '.join([*parts, _since(start)])}"

    return watch(look)


def _bar(stage: str, unit: str, counts: tuple[int, int, int], elapsed: float, more: str) -> str:
    first, done, total = counts
    time_of_it = "{remaining} left" if done < total else "{elapsed}"  # short: a terminal has 80 columns
    form = f"{{desc}} {{bar:5}} {{n_fmt}} of {{total_fmt}} {unit}, {time_of_it}{{postfix}}"
    return tqdm.format_meter(done, total, elapsed, bar_format=form, initial=first, prefix=stage, postfix=more)


def _since(start: float) -> str:
    return tqdm.format_interval(time.monotonic() - start)
