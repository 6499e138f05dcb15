"""The notebook is interrupted: nothing is left running, and the next run works."""

import os
import signal
import sys
import time

import pytest
import requests

from tests import drive as cells
from tests.conftest import ROOT

pytestmark = pytest.mark.faults
TINY = {"TRAIN_ROWS": "8", "TEST_ROWS": "2", "PORT": "8017", "SHARED_DIR": str(ROOT / ".cache")}
MAKE_RUN = [sys.executable, "-m", "tutorial.run"]
SERVE = [*cells.SET_UP, "cell-10", *cells.BATCH[4:6], "cell-26", "cell-32", "cell-34", *cells.END]


def served() -> bool:
    try:
        return requests.get("http://127.0.0.1:8017/v1/models", timeout=2).ok
    except requests.ConnectionError:
        return False


def test_ctrl_c_while_training(start, project, seen):
    run = start(MAKE_RUN, project, **TINY)
    run.wait_for(lambda: len(run.processes("ray::RayTrainWorker")) == 2)
    assert run.processes("weed")
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    run.process.wait(60)
    took = run.all_gone()
    seen(
        "all",
        "Ctrl-C on make run while it trains",
        "no process of Ray or the S3 server is left",
        "none",
        took,
    )


def test_the_kernel_is_killed_while_serving_and_the_next_run_works(start, drive, project, seen):
    run = start(MAKE_RUN, project, **TINY)
    run.wait_for(served, timeout_s=400)
    [kernel] = run.processes("ipykernel")
    kernel.kill()
    run.process.wait(120)
    took = run.all_gone()
    assert not served()
    seen(
        "all",
        "the kernel, while it serves: SIGKILL",
        "no process of Ray, vLLM or the S3 server is left",
        "none",
        took,
    )

    again = drive([*SERVE[:-2], "print(served := [m.id for m in client.models.list()])", *SERVE[-2:]], **TINY)
    begun = time.monotonic()
    assert "SmolLM2-135M-Instruct" in again.end()
    what = f"on the same port, serving and ended after {time.monotonic() - begun:.0f} s"
    seen("all", "the next run after that", "it works", what, None)
