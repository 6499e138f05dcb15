"""What surrounds the training loop on a worker: files, resuming, metrics, and the worker that is killed."""

import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
from ray.train import Checkpoint, Result
from torch import distributed
from transformers import TrainerCallback

from tutorial import TutorialError, model, stage
from tutorial.files import Place

# A second attempt would meet the same error. (PyTorch's own, such as out of memory, are RuntimeErrors.)
PERMANENT = (TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError)
logger = logging.getLogger(__name__)
SHOWN = ("loss", "eval_loss", "epoch")
NOTE = "training-fault.json"  # in the storage: what happened to the worker that was killed


class Workspace:
    """A training worker's folder on its machine.

    Attributes:
        paths: LLaMA-Factory's arguments that name folders: the base model, the rows, the output, the cache.
        callbacks: what the trainer calls besides Ray's own callback.
        finished: whether the checkpoint that was restored is the trained adapter, so no step is left.
        mistake: an error that every attempt would meet, in one line. The training loop returns it.
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
        self.callbacks = [make() for make in config["callbacks"]]

    def restore(self, checkpoint: Checkpoint) -> str:
        """Copy a checkpoint of an earlier attempt to this machine; the folder to resume from."""
        last = self.folder / "last"
        checkpoint.to_directory(last)
        if (last / "adapter_model.safetensors").is_file():  # the attempt failed after its last step
            self.out, self.finished = last, True
        return str(last / "checkpoint")

    def metrics(self) -> dict[str, float]:
        """The last loss, validation loss and epoch, steps done and planned, workers; {} but on rank 0."""
        if ray.train.get_context().get_world_rank() != 0:
            return {}
        state = json.loads((self.out / "trainer_state.json").read_text())
        found = {key: entry[key] for entry in state["log_history"] for key in SHOWN if key in entry}
        found |= {"steps": state["global_step"], "steps_planned": state["max_steps"]}
        return found | {"workers": ray.train.get_context().get_world_size()}

    def adapter(self) -> Checkpoint | None:
        """The trained adapter with the trainer's log; None but on rank 0, or if it was reported before."""
        if ray.train.get_context().get_world_rank() != 0 or self.finished:
            return None
        for reported in self.out.glob("checkpoint-*"):
            shutil.rmtree(reported)
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


class Trained:
    """What a training that reached its last step left.

    Args:
        result: Ray Train's.
        folder: where to copy the adapter's checkpoint to.
        place: the run's folder in the storage.

    Attributes:
        folder: PEFT's files of the adapter, and the trainer's log.
        log: of all attempts, one row for each entry: columns step, loss, eval_loss, learning_rate.
        fault: what the function `fault` returns.

    Raises:
        TutorialError: the training loop returned a mistake, or steps are missing.
    """

    def __init__(self, result: Result, folder: str, place: Place):
        if result.return_value:
            raise TutorialError(f"fine-tuning: {result.return_value}; correct it and run again")
        done, planned = (result.metrics[key] for key in ("steps", "steps_planned"))
        if done != planned:
            raise TutorialError(f"fine-tuning: ended after {done} of {planned} steps")
        self.folder = Path(result.checkpoint.to_directory(folder))
        history = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        columns = ["step", "loss", "eval_loss", "learning_rate"]
        self.log = pd.DataFrame(history).reindex(columns=columns)
        self.fault = fault(place / NOTE)


def earlier(result: Result) -> Iterator[Path]:
    """The folder of an adapter that was saved before the last one, if Ray Train has kept it."""
    for checkpoint, metrics in result.best_checkpoints:
        if metrics["epoch"] < result.metrics["epoch"]:
            with checkpoint.as_directory() as folder:
                yield Path(folder, "checkpoint")
            return


class KillWorker(TrainerCallback):
    """Kill the last worker's process once, with SIGKILL, as losing its machine would, and note what follows.

    Args:
        note: the file in the storage that says what happened, JSON: `killed` and `resumed`, each with `step`
            and `time` (seconds since 1970). No worker was killed while it does not exist.
        share: of all steps, after which it happens.
    """

    def __init__(self, note: Place, share: float = 0.4):
        context = ray.train.get_context()
        self.watches = context.get_world_rank() == context.get_world_size() - 1
        self.note, self.share = note, share
        self.seen = _read(note) if self.watches else {}

    def on_step_end(self, args, state, control, **kwargs):
        """Transformers' hook, after each optimizer step."""
        if not self.watches or "resumed" in self.seen:
            return
        now = {"step": state.global_step, "time": time.time()}
        if "killed" in self.seen:
            self._write({"resumed": now})
        elif state.global_step >= self.share * state.max_steps:
            self._write({"killed": now})
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, news: dict) -> None:
        self.seen |= news
        self.note.write(json.dumps(self.seen).encode())


class Progress(TrainerCallback):
    """Note on rank 0 how far the training is, for `progress.training`.

    Args:
        note: a file in the storage, JSON: `step`, `steps`, `epoch`, the last `loss`, and `first_step` and
            `first_epoch`, at which this attempt began `seconds` ago.
        every_s: seconds between two writes, at least.
    """

    def __init__(self, note: Place, every_s: float = 2):
        # A storage that fails must not hold up a step. Ray's own writes say what is wrong.
        self.note = replace(note, options=note.options | {"attempts": 1, "timeout_s": 2})
        self.every_s, self.start, self.written, self.seen = every_s, time.monotonic(), 0.0, {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Transformers' hook, before the first step."""
        self.start = time.monotonic()
        self.seen = {"first_step": state.global_step, "first_epoch": state.epoch or 0.0}
        self._write(state)

    def on_step_end(self, args, state, control, **kwargs):
        """Transformers' hook, after each optimizer step."""
        if time.monotonic() - self.written > self.every_s or state.global_step == state.max_steps:
            self._write(state)

    def _write(self, state) -> None:
        if not state.is_world_process_zero:
            return
        now = {"step": state.global_step, "steps": state.max_steps, "epoch": state.epoch or 0.0}
        now |= next(({"loss": past["loss"]} for past in state.log_history[::-1] if "loss" in past), {})
        self.written = time.monotonic()
        content = self.seen | now | {"seconds": self.written - self.start}
        try:
            self.note.write(json.dumps(content).encode())
        except OSError as error:
            logger.warning("progress is not noted: %s", error)


def killer(place: Place) -> Callable[[], KillWorker]:
    """What makes the callback on a worker; `place` is the run's folder in the storage."""
    return partial(KillWorker, place / NOTE)


def fault(note: Place) -> dict[str, Any]:
    """When a worker was `killed` and training `resumed`, each with `step` and `time`, and `recovery_s`.

    {} without both: no worker was killed, or the run resumed with `KILL_WORKER=0`.
    """
    seen = _read(note)
    if "resumed" not in seen:
        return {}
    return seen | {"recovery_s": seen["resumed"]["time"] - seen["killed"]["time"]}


def _read(note: Place) -> dict[str, dict[str, float]]:
    return json.loads(note.read()) if note.exists() else {}
