"""Processes of the training stage are killed; the run goes on, or is gone on with."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from tests import cells

pytestmark = pytest.mark.faults
STEPS = 8  # 32 rows, two workers with two rows a step; a checkpoint after every second
LOGGED = "trained.log['step'][trained.log['loss'].notna()].tolist()"
TRAIN = [*cells.TRAIN, f"import json; print(json.dumps(result.metrics | {{'logged': {LOGGED}}}))", *cells.END]


def snapshot(storage: Path, name: str) -> dict:
    """What Ray Train notes of the run's checkpoints."""
    path = storage / name / "training" / "checkpoint_manager_snapshot.json"
    text = path.read_text() if path.is_file() else ""
    while path.is_file() and not text.endswith("}"):  # it is being written, and not in one go
        text = path.read_text()
    return json.loads(text) if text else {"checkpoint_results": []}


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


def test_one_worker_is_killed_then_all(drive, seen, storage):
    run = drive(TRAIN, STORAGE=str(storage), RUN_NAME="workers")
    has_checkpoint(run, storage, "workers")
    for fault, victims in (("one training worker of two", slice(1)), ("every training worker", slice(None))):
        workers = run.processes("ray::RayTrainWorker")
        assert len(workers) == 2, [process.cmdline() for process in run.processes("ray::")]
        for worker in workers[victims]:
            worker.kill()
        again = next_checkpoint(run, storage, "workers")
        promise = "Ray Train starts all workers again, from the last checkpoint"
        what = f"{STEPS} of {STEPS} steps, each logged once"
        seen("training", f"{fault}: SIGKILL", promise, what, again)
    assert_finished(run, storage, "workers")


def test_the_controller_is_killed_then_the_driver(drive, seen, storage):
    others = {path.name: content(path) for path in storage.iterdir()}
    env = {"STORAGE": str(storage), "RUN_NAME": "driver"}
    run = drive(TRAIN, **env)
    has_checkpoint(run, storage, "driver")
    [controller] = run.processes("ray::TrainController")
    controller.kill()
    start = time.monotonic()
    line = run.end(1)
    assert line.startswith("TutorialError: fine-tuning: "), run.said()[-3000:]
    assert line.endswith("RESUME=1 resumes from the last checkpoint")
    run.all_gone()
    assert "RUN_NAME=driver: " in drive(TRAIN, **env).end(1)
    changed = drive(TRAIN, RESUME="1", TRAIN_ROWS="28", **env)
    assert "RESUME=1: data/train.parquet differs from that of " in changed.end(1)

    second = drive(TRAIN, RESUME="1", **env)
    next_checkpoint(second, storage, "driver")
    promise = "the stage ends in one line; RESUME=1 goes on from the last checkpoint"
    what = "one line, then the next checkpoint"
    seen("training", "Ray Train's controller: SIGKILL", promise, what, time.monotonic() - start)
    second.process.kill()
    start = time.monotonic()
    second.process.wait()
    second.all_gone()

    third = drive(TRAIN, RESUME="1", **env)
    next_checkpoint(third, storage, "driver")
    took = time.monotonic() - start
    assert_finished(third, storage, "driver")
    promise = "RESUME=1 with the same RUN_NAME goes on from the last checkpoint"
    what = f"{STEPS} of {STEPS} steps; the files of other runs untouched"
    seen("training", "the notebook's own process: SIGKILL", promise, what, took)
    assert {path.name: content(path) for path in storage.iterdir() if path.name != "driver"} == others


def test_what_every_attempt_would_meet_is_not_retried(drive, storage):
    """A mistake that no check of the recipe knows: an error of the trainer's own, raised on every worker."""
    spoil = "chat.recipe_args |= {'lr_scheduler_type': 'no such'}"
    place = TRAIN.index("train-loop")
    run = drive([*TRAIN[:place], spoil, *TRAIN[place:]], STORAGE=str(storage), RUN_NAME="mistake")
    workers = set()
    while run.process.poll() is None:
        workers |= {process.pid for process in run.processes("ray::RayTrainWorker")}
        time.sleep(0.2)
    line = run.end(1)
    assert line.startswith("TutorialError: fine-tuning: "), run.said()[-3000:]
    assert line.endswith("; correct it and run again")
    assert len(workers) == 2, "one attempt, with two workers"
