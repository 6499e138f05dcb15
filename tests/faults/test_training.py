"""Processes of the training stage are killed; the run goes on, or is gone on with."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from tests import drive as cells

pytestmark = pytest.mark.faults
STEPS = 8  # 32 rows, two workers with two rows a step; a checkpoint after every second
TRAIN = [
    *cells.TRAIN,
    "print(json.dumps(result.metrics | {'logged': log['step'][log['loss'].notna()].tolist()}))",
]
TRAIN += cells.END


def snapshot(storage: Path, name: str) -> dict:
    """What Ray Train notes of the run's checkpoints."""
    path = storage / name / "training" / "checkpoint_manager_snapshot.json"
    return json.loads(path.read_text()) if path.is_file() else {"checkpoint_results": []}


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def has_checkpoint(run, storage: Path, name: str) -> None:
    """Wait for the first one."""
    run.wait_for(lambda: snapshot(storage, name)["checkpoint_results"])


def next_checkpoint(run, storage: Path, name: str) -> float:
    """Seconds until the next one after those there are."""
    before, start = snapshot(storage, name), time.monotonic()
    run.wait_for(lambda: snapshot(storage, name) != before)
    return time.monotonic() - start


def assert_finished(run, storage: Path, name: str) -> None:
    """Every step was done, each log line is there once, and no checkpoint was made twice."""
    metrics = json.loads(run.end())
    assert metrics["steps"] == metrics["steps_planned"] == STEPS
    assert metrics["logged"] == [1, 5]
    assert snapshot(storage, name)["current_report_index"] == 5, "steps 2, 4, 6, 8 and the finished adapter"


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """One storage for all runs of this file: each leaves the others' files alone."""
    return tmp_path_factory.mktemp("storage")


@pytest.mark.parametrize(
    ("name", "victims"), [("one-worker", slice(1)), ("all-workers", slice(None))], ids=["one", "all"]
)
def test_workers_are_killed(drive, seen, storage, name, victims):
    others = {path.name: content(path) for path in storage.iterdir()}
    run = drive(TRAIN, STORAGE=str(storage), RUN_NAME=name)
    has_checkpoint(run, storage, name)
    workers = run.processes("ray::RayTrainWorker")
    assert len(workers) == 2, [process.cmdline() for process in run.processes("ray::")]
    for worker in workers[victims]:
        worker.kill()
    again = next_checkpoint(run, storage, name)
    assert_finished(run, storage, name)
    assert {path.name: content(path) for path in storage.iterdir() if path.name != name} == others
    what = "every training worker" if name == "all-workers" else "one training worker of two"
    promise = "Ray Train starts the workers again, from the last checkpoint"
    seen("training", f"{what}: SIGKILL", promise, f"{STEPS} of {STEPS} steps, none logged twice", again)


def test_the_controller_is_killed(drive, seen, storage):
    run = drive(TRAIN, STORAGE=str(storage), RUN_NAME="controller")
    has_checkpoint(run, storage, "controller")
    [controller] = run.processes("ray::TrainController")
    controller.kill()
    start = time.monotonic()
    assert run.end(1).startswith("TutorialError: fine-tuning: "), run.said()[-3000:]
    assert run.end(1).endswith("RESUME=1 goes on from the last checkpoint")
    run.all_gone()
    again = drive(TRAIN, STORAGE=str(storage), RUN_NAME="controller", RESUME="1")
    next_checkpoint(again, storage, "controller")
    took = time.monotonic() - start
    assert_finished(again, storage, "controller")
    promise = "the stage ends in one line; RESUME=1 goes on from the last checkpoint"
    seen(
        "training",
        "Ray Train's controller: SIGKILL",
        promise,
        f"one line, then {STEPS} of {STEPS} steps",
        took,
    )


def test_the_driver_is_killed(drive, seen, storage):
    others = {path.name: content(path) for path in storage.iterdir()}
    run = drive(TRAIN, STORAGE=str(storage), RUN_NAME="driver")
    has_checkpoint(run, storage, "driver")
    run.process.kill()
    start = time.monotonic()
    run.process.wait()
    run.all_gone()
    refused = drive(TRAIN, STORAGE=str(storage), RUN_NAME="driver")
    assert "RUN_NAME=driver: " in refused.end(1)
    changed = drive(TRAIN, STORAGE=str(storage), RUN_NAME="driver", RESUME="1", TRAIN_ROWS="28")
    assert "RESUME=1: data/train.jsonl was another in the run driver" in changed.end(1)
    again = drive(TRAIN, STORAGE=str(storage), RUN_NAME="driver", RESUME="1")
    next_checkpoint(again, storage, "driver")
    took = time.monotonic() - start
    assert_finished(again, storage, "driver")
    assert {path.name: content(path) for path in storage.iterdir() if path.name != "driver"} == others
    promise = "RESUME=1 with the same RUN_NAME goes on from the last checkpoint"
    seen("training", "the notebook's own process: SIGKILL", promise, f"{STEPS} of {STEPS} steps", took)
