"""What the trainer calls on a worker after each step: it may kill the worker, and notes the progress."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
import torch
from transformers import TrainerCallback

from tutorial import gpus, progress
from tutorial.files import Place

NOTE = "training-fault.json"  # in the storage: what happened to the worker that was killed
logger = logging.getLogger(__name__)


class KillWorker(TrainerCallback):
    """Kill the last worker's process once, with SIGKILL, as losing its machine would, and note what follows.

    Args:
        note: the file in the storage that says what happened, JSON: `killed` and `resumed`, each with `step`
            and `time` (seconds since 1970). No worker was killed while it does not exist.
        share: of all steps, after which it happens. Soon after a checkpoint, few steps are repeated.
    """

    def __init__(self, note: Place, share: float = 0.3):
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
            # A checkpoint that Ray Train's controller has not asked for yet would be lost with this worker.
            ray.train.get_all_reported_checkpoints(timeout_s=60)
            self._write({"killed": now | {"time": time.time()}})
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, news: dict) -> None:
        self.seen |= news
        self.note.write(json.dumps(self.seen).encode())


class Memory(TrainerCallback):
    """Watch the memory of this worker's GPU, whoever uses it; `peak` in GiB, 0 without one."""

    peak = 0.0

    def gpu(self) -> gpus.Gpu | None:
        """This worker's GPU. Ray Train lets a worker see all that its machine's workers have."""
        return gpus.visible()[torch.cuda.current_device()] if torch.cuda.is_available() else None

    def on_log(self, args, state, control, **kwargs):
        """Transformers' hook: every few steps, and after an evaluation. PyTorch keeps what it once took."""
        if gpu := self.gpu():
            self.peak = max(self.peak, gpu.total - gpu.free)


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
        self.written = time.monotonic()
        now = {"step": state.global_step, "steps": state.max_steps, "epoch": state.epoch or 0.0}
        now |= next(({"loss": past["loss"]} for past in state.log_history[::-1] if "loss" in past), {})
        try:
            self.note.write(json.dumps(self.seen | now | {"seconds": self.written - self.start}).encode())
        except OSError as error:
            logger.warning("progress is not noted: %s", error)


def makers(place: Place, kill_worker: bool) -> list[Callable[[], TrainerCallback]]:
    """What makes the callbacks on a worker; `place` is the run's folder in the storage."""
    noted = [partial(Progress, place / progress.NOTE)]
    return [*noted, partial(KillWorker, place / NOTE)] if kill_worker else noted


def fault(note: Place) -> dict[str, Any]:
    """When a worker was `killed` and training `resumed`, each with `step` and `time`, and `recovery_s`.

    {} without both: no worker was killed, or the run resumed with `KILL_WORKER=0`.
    """
    seen = _read(note)
    again = seen.get("resumed")
    return seen | {"recovery_s": again["time"] - seen["killed"]["time"]} if again else {}


def _read(note: Place) -> dict[str, dict[str, float]]:
    return json.loads(note.read()) if note.exists() else {}
