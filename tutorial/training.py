"""What surrounds the training loop on a worker: its files, resuming, metrics; and what the training left."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.fs
import ray.train
from ray.train import Checkpoint, Result
from torch import distributed

from tutorial import TutorialError, callbacks, gpus, model, stage
from tutorial.files import Place

# A second attempt would meet the same error. (PyTorch's own, such as out of memory, are RuntimeErrors.)
PERMANENT = (TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError)
# Where trackers keep their files unless the environment says it; the worker's current folder is deleted.
TRACKERS = {"WANDB_DIR": "{}", "TRACKIO_DIR": "{}/trackio", "MLFLOW_TRACKING_URI": "sqlite:///{}/mlflow.db"}
SHOWN = ("loss", "eval_loss", "epoch")


class Workspace:
    """A training worker's folder on its machine.

    Attributes:
        paths: LLaMA-Factory's arguments that name folders: the base model, the rows, the output, the cache.
        callbacks: what the trainer calls besides Ray's own callback.
        finished: whether no step is left or can be made: the checkpoint that was restored is the trained
            adapter, or there is a mistake.
        mistake: an error that every attempt would meet, in one line, such as a GPU that is too small. The
            training loop returns it.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder, self.out, self.finished, self.mistake = folder, folder / "out", False, None
        config["data"].copy_to(Place.of(str(folder / "data")))
        self.paths = {
            "model_name_or_path": model.fetch(config["model"], config["scratch"]),
            "dataset_dir": str(folder / "data"),
            "output_dir": str(self.out),
            "cache_dir": str(folder / "cache"),  # the datasets library would keep the rows in the home folder
        }
        self.tracked = folder.parent / "tracked"  # of all attempts on this machine
        self.tracked.mkdir(exist_ok=True)
        for name, place in TRACKERS.items():
            os.environ.setdefault(name, place.format(self.tracked))
        self.memory = callbacks.Memory()
        if "callbacks" not in config:
            config |= {"callbacks": callbacks.makers(config["place"], config["kill_worker"])}
        self.callbacks = [*(make() for make in config["callbacks"]), self.memory]
        if gpu := self.memory.gpu():
            self.mistake = gpus.lacks(Path(self.paths["model_name_or_path"]), config["args"], gpu) or None
            self.finished = bool(self.mistake)

    def restore(self, checkpoint: Checkpoint) -> str:
        """Copy a checkpoint of an earlier attempt to this machine; the folder to resume from."""
        import peft.peft_model

        # Else each worker reads the adapter by way of GPU 0, and then holds memory of every GPU (peft#2193).
        peft.peft_model.infer_device = lambda: "cpu"
        last = self.folder / "last"
        download(checkpoint, last)
        if (last / "adapter_model.safetensors").is_file():  # the attempt failed after its last step
            self.out, self.finished = last, True
        return str(last / "checkpoint")

    def metrics(self) -> dict[str, float]:
        """The last loss, validation loss and epoch, steps done and planned, workers, and the most GiB in use
        of this worker's GPU; {} but on rank 0, or after a mistake."""
        if ray.train.get_context().get_world_rank() != 0 or self.mistake:
            return {}
        state = json.loads((self.out / "trainer_state.json").read_text())
        found = {key: entry[key] for entry in state["log_history"] for key in SHOWN if key in entry}
        found |= {"steps": state["global_step"], "steps_planned": state["max_steps"]}
        found |= {"gpu_gib": round(self.memory.peak, 1)} if self.memory.peak else {}
        return found | {"workers": ray.train.get_context().get_world_size()}

    def adapter(self) -> Checkpoint | None:
        """The trained adapter with the trainer's log; None but on rank 0, or if it was reported before."""
        if ray.train.get_context().get_world_rank() != 0 or self.finished:
            return None
        for reported in self.out.glob("checkpoint-*"):
            shutil.rmtree(reported)
        if wandb := sys.modules.get("wandb"):  # it ends its run with the process, which Ray Train kills
            wandb.finish()
        shutil.copytree(self.tracked, self.out / "runs", dirs_exist_ok=True)  # beside TensorBoard's
        return Checkpoint.from_directory(self.out)


@contextmanager
def workspace(config: dict[str, Any]) -> Iterator[Workspace]:
    """A worker's folder while the training loop runs; it is deleted if all goes well.

    After an error, or if the process is killed, its files stay: the storage may be what failed. An error that
    every attempt would meet is not raised, so that Ray Train does not retry: the training loop returns it as
    `mistake`, and `Trained` raises it in the notebook.
    """
    shared = Path(tempfile.gettempdir(), config["scratch"])
    shared.mkdir(mode=0o700, exist_ok=True)
    work = Workspace(Path(tempfile.mkdtemp(dir=shared, prefix="worker-")), config)
    try:
        yield work
    except PERMANENT as error:
        if distributed.is_initialized():  # a worker that waits for this one gets an error, not a time-out
            distributed.destroy_process_group()
        work.mistake = stage.reason(error)
    shutil.rmtree(work.folder)
    if not list(shared.glob("worker-*")):  # the last worker of this machine
        shutil.rmtree(shared, ignore_errors=True)


def download(checkpoint: Checkpoint, folder: Path) -> Path:
    """Copy a checkpoint's files to a folder. (`Checkpoint.to_directory` leaves a lock file behind.)"""
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.fs.copy_files(checkpoint.path, str(folder), checkpoint.filesystem)
    return folder


class Trained:
    """What a training that reached its last step left.

    Args:
        result: Ray Train's.
        folder: where to copy the adapter's checkpoint to.
        place: the run's folder in the storage.

    Attributes:
        folder: PEFT's files of the adapter, and the trainer's log.
        log: of all attempts, one row for each entry: columns step, loss, eval_loss, learning_rate.
        fault: what `callbacks.fault` returns.

    Raises:
        TutorialError: the training loop returned a mistake, or steps are missing.
    """

    def __init__(self, result: Result, folder: str, place: Place):
        if result.return_value:
            raise TutorialError(f"fine-tuning: {result.return_value}; correct it and run again")
        done, planned = (result.metrics[key] for key in ("steps", "steps_planned"))
        if done != planned:
            raise TutorialError(f"fine-tuning: ended after {done} of {planned} steps")
        self.folder = download(result.checkpoint, Path(folder))
        history = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        self.log = pd.DataFrame(history).reindex(columns=["step", "loss", "eval_loss", "learning_rate"])
        self.fault = callbacks.fault(place / callbacks.NOTE)


def earlier(result: Result) -> Iterator[Path]:
    """The folder of an adapter that was saved before the last one, if Ray Train has kept it."""
    for checkpoint, metrics in result.best_checkpoints:
        if metrics["epoch"] < result.metrics["epoch"]:
            with tempfile.TemporaryDirectory() as folder:
                yield download(checkpoint, Path(folder)) / "checkpoint"
            return
