"""Processes that are started to be hurt, and the file of what was seen."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tutorial import stage

SMALL = {"TRAIN_ROWS": "32", "VAL_ROWS": "4", "TEST_ROWS": "8", "KILL_WORKER": "0", "DATA": "sample"}
FOUND: list[dict] = []


class Run:
    """A program in a process group of its own. All processes that come of it are known by a variable.

    Args:
        command: the program.
        folder: for its log.
        env: further environment variables.
        project: where it runs.
    """

    def __init__(self, command: list[str], folder: Path, env: dict[str, str], project: Path = ROOT):
        self.mark, self.log = uuid.uuid4().hex, folder / f"{uuid.uuid4().hex}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=project,
                env=os.environ | SMALL | env | {"TUTORIAL_TEST_RUN": self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that are alive and have each of the words in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if (
                    process.environ().get("TUTORIAL_TEST_RUN") == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                    and all(word in line for word in words)
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def wait_for(self, what, timeout_s: float = 240):
        """Poll until `what()` is true and return it; fail where the program ends before."""
        start = time.monotonic()
        while not (found := what()):
            assert self.process.poll() is None or what(), f"it ended: {self.said()[-3000:]}"
            assert time.monotonic() - start < timeout_s, f"nothing after {timeout_s} s: {self.said()[-3000:]}"
            time.sleep(0.2)
        return found

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, returncode: int = 0, timeout_s: float = 400) -> str:
        """Wait for its end; the last line that it said."""
        assert self.process.wait(timeout_s) == returncode, self.said()[-3000:]
        return (self.said().strip().splitlines() or [""])[-1]

    def all_gone(self, timeout_s: float = 40) -> float:
        """Wait until no process of it is left; the seconds that it took."""
        start = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - start < timeout_s, [process.cmdline()[:3] for process in left]
            time.sleep(0.2)
        return time.monotonic() - start

    def kill(self) -> None:
        """Whatever is left of it."""
        for process in self.processes():
            process.kill()
        self.process.wait(10)


@pytest.fixture
def start(tmp_path):
    """Start a program that is killed with all that came of it when the test ends."""
    runs = []

    def start(command: list[str], project: Path = ROOT, **env: str) -> Run:
        runs.append(Run(command, tmp_path, env, project))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@pytest.fixture
def project(tmp_path):
    """A copy of the project, whose out/ is its own."""
    hidden = shutil.ignore_patterns(".*", "out", "images")
    return Path(shutil.copytree(ROOT, tmp_path / "project", ignore=hidden))


@pytest.fixture
def drive(start):
    """Start some cells of the notebook."""

    def drive(cells: list[str], **env: str) -> Run:
        return start([sys.executable, "-m", "tests.cells", json.dumps(cells)], **env)

    return drive


@pytest.fixture
def seen():
    """Note a fault for the table of the notebook."""

    def note(stage: str, fault: str, promise: str, seen: str, recovery_s: float | None) -> None:
        FOUND.append(
            {
                "stage": stage,
                "fault": fault,
                "promise": promise,
                "seen": seen,
                "recovery_s": None if recovery_s is None else round(recovery_s, 1),
            }
        )

    return note


def pytest_sessionfinish(session, exitstatus):
    """What was seen goes to out/faults.json, and where all went well to the file of `--faults-json`, which
    `make test-faults` names: the table of the page."""
    files = [ROOT / "out" / "faults.json"]
    if exitstatus == 0 and session.config.getoption("--faults-json"):
        files.append(Path(session.config.getoption("--faults-json")))
    for file in files:
        stage.write(file, {"stamp": stage.stamp({}), "faults": FOUND})
