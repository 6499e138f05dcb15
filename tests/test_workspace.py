"""A training worker's folder, what is retried, and the note of a worker that was killed."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import Checkpoint

from tests.conftest import ROOT
from tutorial import TutorialError, callbacks, training
from tutorial.files import Place

KILLED = """
import os, signal, sys
from tests.test_workspace import config_of
from tutorial import training
with training.workspace(config_of(sys.argv[1])) as work:
    work.out.mkdir()
    (work.out / "trained").write_text("so far")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def config_of(folder):
    """A worker's configuration: one file of rows, a base model that is a folder, no callbacks."""
    data = Path(folder, "rows")
    data.mkdir(exist_ok=True)
    (data / "train.parquet").write_bytes(b"rows")
    return {"data": Place.of(str(data)), "model": folder, "scratch": "mine-1", "callbacks": []}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before, tempfile.tempdir = tempfile.tempdir, None  # it is looked up once
    yield config_of(str(tmp_path))
    tempfile.tempdir = before


def test_a_worker_s_files_are_deleted_if_all_goes_well(config, tmp_path):
    with training.workspace(config) as work:
        assert Path(work.paths["dataset_dir"], "train.parquet").read_bytes() == b"rows"
        assert work.folder.parent == tmp_path / "mine-1"
        assert oct(work.folder.parent.stat().st_mode & 0o777) == "0o700"
    assert not (tmp_path / "mine-1").exists()
    assert work.mistake is None


def test_another_worker_of_the_machine_keeps_its_files(config, tmp_path):
    with training.workspace(config) as other:
        with training.workspace(config):
            pass
        assert other.folder.is_dir()
    assert not (tmp_path / "mine-1").exists()


def test_files_stay_after_an_error_that_a_retry_may_mend(config, tmp_path):
    with pytest.raises(RuntimeError), training.workspace(config):
        raise RuntimeError("out of memory")
    assert list((tmp_path / "mine-1").glob("worker-*/data/train.parquet"))


def test_files_stay_if_the_process_is_killed(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    [trained] = (tmp_path / "mine-1").glob("worker-*/out/trained")
    assert trained.read_text() == "so far"


@pytest.mark.parametrize("error", [TypeError("lr"), ValueError("lr"), KeyError("lr"), ImportError("lr")])
def test_what_every_attempt_would_meet_is_returned_and_not_raised(config, tmp_path, error):
    with training.workspace(config) as work:
        raise error
    assert work.mistake.startswith(type(error).__name__)
    assert not (tmp_path / "mine-1").exists()
    result = SimpleNamespace(return_value=work.mistake, metrics=None)
    with pytest.raises(TutorialError, match=r"^fine-tuning: .*lr.*; correct it and run again$"):
        training.Trained(result, str(tmp_path), Place.of(str(tmp_path)))


def test_a_training_that_ended_early_is_an_error(tmp_path):
    metrics = {"steps": 4, "steps_planned": 8}
    with pytest.raises(TutorialError, match="ended after 4 of 8 steps"):
        training.Trained(SimpleNamespace(return_value=None, metrics=metrics), "none", Place.of(str(tmp_path)))


def test_what_a_training_left(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}]
    (tmp_path / "reported").mkdir()
    (tmp_path / "reported" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    checkpoint = Checkpoint.from_directory(tmp_path / "reported")
    whole = {"steps": 8, "steps_planned": 8}
    result = SimpleNamespace(return_value=None, metrics=whole, checkpoint=checkpoint)
    trained = training.Trained(result, str(tmp_path / "here"), Place.of(str(tmp_path)))
    assert trained.folder == tmp_path / "here"
    assert trained.log["loss"].dropna().tolist() == [2.0]
    assert list(trained.log.columns) == ["step", "loss", "eval_loss", "learning_rate"]
    assert trained.fault == {}


def test_an_adapter_that_was_saved_before_the_last_one(tmp_path):
    def saved(name, epoch):
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        return Checkpoint.from_directory(tmp_path / name), {"epoch": epoch}

    kept = [saved("first", 0.5), saved("second", 0.75), saved("last", 1.0)]
    result = SimpleNamespace(metrics={"epoch": 1.0}, best_checkpoints=kept)
    assert list(training.earlier(result)) == [tmp_path / "first" / "checkpoint"]
    assert list(training.earlier(SimpleNamespace(metrics={"epoch": 1.0}, best_checkpoints=kept[2:]))) == []


def test_a_kill_without_a_step_after_it_is_no_fault(tmp_path):
    note = Place.of(str(tmp_path)) / "fault.json"
    assert callbacks.fault(note) == {}
    note.write(json.dumps({"killed": {"step": 4, "time": 1.0}}).encode())
    assert callbacks.fault(note) == {}
    note.write(json.dumps({"killed": {"step": 4, "time": 1.0}, "resumed": {"step": 3, "time": 9.5}}).encode())
    assert callbacks.fault(note)["recovery_s"] == 8.5
