"""The notebook is interrupted: nothing is left running, and the next run works."""

import os
import signal
import sys
import tempfile
import time

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell

from tests import cells
from tests.conftest import ROOT

pytestmark = pytest.mark.faults
KEY = "a-key-of-these-tests"
TINY = {
    "TRAIN_ROWS": "8",
    "TEST_ROWS": "2",
    "PORT": "8017",
    "SHARED_DIR": str(ROOT / ".cache"),
    "API_KEYS": KEY,
}
MAKE_RUN = [sys.executable, "-m", "tutorial.run"]
SERVE = [
    *cells.SET_UP,
    *cells.PREPARE,
    *cells.UNTRAINED,
    "processor",
    "questions",
    "service",
    "serve",
    "import time; time.sleep(600)",
]


def served() -> bool:
    try:
        key = {"Authorization": f"Bearer {KEY}"}
        return requests.get("http://127.0.0.1:8017/v1/models", headers=key, timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture
def temporary():
    """A folder for temporary files, with a path that is short enough for Ray."""
    with tempfile.TemporaryDirectory(prefix="i-", dir="/tmp") as folder:
        yield folder


def press_ctrl_c(run, temporary):
    """As a terminal does: one line, and nothing is left."""
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end(130, 200) == "interrupted; if STORAGE and RUN_NAME are set, RESUME=1 resumes the run"
    assert "Traceback" not in run.said()
    assert os.listdir(temporary) == []


def test_ctrl_c_while_training(start, project, seen, temporary):
    run = start(MAKE_RUN, project, TMPDIR=temporary, **TINY)
    run.wait_for(lambda: len(run.processes("ray::RayTrainWorker")) == 2)
    assert run.processes("weed")
    press_ctrl_c(run, temporary)
    took = run.all_gone()
    seen(
        "all",
        "Ctrl-C on make run while it trains",
        "no process of Ray or the S3 server is left",
        "none",
        took,
    )


@pytest.fixture
def serving(project):
    """The notebook without training and batch stage."""
    notebook = nbformat.read(project / "README.ipynb", as_version=4)
    by_id = {cell.id: cell.source for cell in notebook.cells}
    notebook.cells = [new_code_cell(by_id.get(item, item)) for item in SERVE]
    nbformat.write(notebook, project / "README.ipynb")
    return project


def test_the_kernel_is_killed_while_serving_and_the_next_run_works(start, serving, seen, temporary):
    run = start(MAKE_RUN, serving, **TINY)
    run.wait_for(served)
    [kernel] = run.processes("ipykernel")
    kernel.kill()
    run.process.wait(120)
    took = run.all_gone()
    promise = "no process of Ray, vLLM or the S3 server is left"
    seen("all", "the kernel, while it serves: SIGKILL", promise, "none is", took)

    again, begun = start(MAKE_RUN, serving, TMPDIR=temporary, **TINY), time.monotonic()
    again.wait_for(served)
    took = time.monotonic() - begun
    press_ctrl_c(again, temporary)
    again.all_gone()
    seen("all", "the next run after that", "it works", "it served, on the same port", took)
