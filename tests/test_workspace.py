"""A training worker's folder, what is retried, and the note of a worker that was killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from ray.train import Checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import ROOT
from tutorial import TutorialError, callbacks, training
from tutorial.files import Place
from tutorial.session import Run

KILLED = """
import os, signal, sys
from tests.test_workspace import config_of
from tutorial import training
with training.workspace(config_of(sys.argv[1])) as work:
    work.out.mkdir()
    (work.out / "trained").write_text("so far")
    os.kill(os.getpid(), signal.SIGKILL)
"""
TRACKED = """
import sys
from types import SimpleNamespace
import ray.train
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from tests.test_workspace import config_of
from tutorial import training
folder, name = sys.argv[1:]
ray.train.get_context = lambda: SimpleNamespace(get_world_rank=lambda: 0)  # what Ray Train says on rank 0
with training.workspace(config_of(folder)) as work:
    work.out.mkdir()
    args = {"output_dir": str(work.out), "report_to": [name], "run_name": "viggo-1", "trackio_space_id": None}
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    args = TrainingArguments(**args)
    tracker = get_reporting_integration_callbacks([name])[0]()
    tracker.on_train_begin(args, state, control, model=None)
    for state.global_step in (1, 2):
        tracker.on_log(args, state, control, logs={"loss": 1 / state.global_step})
    tracker.on_train_end(args, state, control)
    work.adapter().to_directory(f"{folder}/checkpoint")
"""
RESUMED = """
import sys, tempfile
from types import SimpleNamespace
import ray
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from tutorial import callbacks
from tutorial.files import Place
folder = sys.argv[1]
def loop():
    killer = callbacks.KillWorker(Place.of(folder) / callbacks.NOTE, share=0.3)
    first = 1 if ray.train.get_checkpoint() is None else 2
    for step in range(first, 4):
        with tempfile.TemporaryDirectory() as saved:
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(saved))
        killer.on_step_end(None, SimpleNamespace(global_step=step, max_steps=3), None)
ray.init(address="local", num_cpus=2, include_dashboard=False)
run = RunConfig(storage_path=folder, name="run", failure_config=FailureConfig(max_failures=1))
TorchTrainer(loop, run_config=run, scaling_config=ScalingConfig(num_workers=1)).fit()
"""
TRACKERS = {  # what is installed for it, without what is here; the file that it leaves
    "trackio": (
        "trackio==0.43.0 gradio-client==2.7.2 orjson==3.13.0 python-multipart==0.0.34",
        "trackio/*.db",
    ),
    "wandb": ("wandb==0.31.0", "wandb/offline-run-*/run-*.wandb"),
}


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


def test_a_resumed_worker_reads_the_adapter_by_way_of_no_gpu(config, tmp_path, monkeypatch):
    config_of_model = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    network = get_peft_model(LlamaForCausalLM(config_of_model), LoraConfig(target_modules=["q_proj"]))
    network.save_pretrained(tmp_path / "saved/checkpoint")
    monkeypatch.setattr(peft.peft_model, "infer_device", peft.peft_model.infer_device)
    with training.workspace(config) as work:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # though there is none
        folder = work.restore(Checkpoint(str(tmp_path / "saved")))
        network.load_adapter(folder, "default", is_trainable=True)  # as the trainer does


def test_files_stay_after_an_error_that_a_retry_may_mend(config, tmp_path):
    with pytest.raises(RuntimeError), training.workspace(config):
        raise RuntimeError("out of memory")
    assert list((tmp_path / "mine-1").glob("worker-*/data/train.parquet"))


@pytest.mark.slow
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
        (tmp_path / name / "checkpoint" / "of").write_text(name)
        return Checkpoint.from_directory(tmp_path / name), {"epoch": epoch}

    kept = [saved("first", 0.5), saved("second", 0.75), saved("last", 1.0)]
    result = SimpleNamespace(metrics={"epoch": 1.0}, best_checkpoints=kept)
    for folder in training.earlier(result):
        assert (folder / "of").read_text() == "first"
    assert not folder.exists(), "it was a copy"
    assert list(training.earlier(SimpleNamespace(metrics={"epoch": 1.0}, best_checkpoints=kept[2:]))) == []


def test_a_kill_without_a_step_after_it_is_no_fault(tmp_path):
    note = Place.of(str(tmp_path)) / "fault.json"
    assert callbacks.fault(note) == {}
    note.write(json.dumps({"killed": {"step": 4, "time": 1.0}}).encode())
    assert callbacks.fault(note) == {}
    note.write(json.dumps({"killed": {"step": 4, "time": 1.0}, "resumed": {"step": 3, "time": 9.5}}).encode())
    assert callbacks.fault(note)["recovery_s"] == 8.5


@pytest.mark.slow
def test_a_worker_is_killed_after_ray_train_has_its_checkpoints(tmp_path):
    """The controller asks for reports every few seconds: what it has not seen is lost with the worker."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "3"}
    command = [sys.executable, "-c", RESUMED, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fault = callbacks.fault(Place.of(str(tmp_path)) / callbacks.NOTE)
    assert (fault["killed"]["step"], fault["resumed"]["step"]) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_what_a_tracker_writes_goes_into_the_checkpoint(name, tmp_path):
    packages, left = TRACKERS[name]
    command = [
        "uv",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        *packages.split(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "client error (Connect)" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    for folder in ("home", "tmp", "current"):
        (tmp_path / folder).mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
        "HOME": str(tmp_path / "home"),
    }
    env |= {"TMPDIR": str(tmp_path / "tmp"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    env |= {"WANDB_API_KEY": "a-secret" * 5, "HF_TOKEN": "a-secret"}
    command = [sys.executable, "-c", TRACKED, str(tmp_path / "tmp"), name]
    done = subprocess.run(
        command, cwd=tmp_path / "current", env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "tmp" / "checkpoint" / "runs"
    [file] = runs.glob(left)
    assert b"train/loss" in file.read_bytes()
    for each in runs.rglob("*"):
        assert each.is_dir() or b"a-secret" not in each.read_bytes(), each
    assert "a-secret" not in done.stdout + done.stderr
    assert not (tmp_path / "tmp" / "mine-1").exists(), "the worker's own folder is deleted"
    assert [each for part in ("home", "current") for each in (tmp_path / part).rglob("*.db")] == []
    assert [each for part in ("home", "current") for each in (tmp_path / part).rglob("*.wandb")] == []


def test_what_ray_train_s_controller_reads_imports_no_transformers(tmp_path):
    """It would take the first workers' start five seconds longer on two cores."""
    place, settings = Place.of(str(tmp_path)), SimpleNamespace(kill_worker=True)
    run = SimpleNamespace(place=place, settings=settings, storage=SimpleNamespace(scratch="mine-1"))
    read = "import pickle, sys; pickle.load(sys.stdin.buffer); assert 'transformers' not in sys.modules"
    config = pickle.dumps(Run.training_config(run, {}, "model", place))
    subprocess.run([sys.executable, "-c", read], input=config, cwd=ROOT, check=True)
