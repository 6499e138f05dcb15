"""The fault that stage 3 shows: one training worker is killed, once, in the middle of the run."""

import json
import os
import signal
import time

import ray.train
from transformers import TrainerCallback

from tutorial import storage


class KillWorker(TrainerCallback):
    """Ends the last worker's process with SIGKILL, as a machine that is lost would, and notes what followed.

    Args:
        note: the file in the storage that says what happened, JSON: `killed` and `resumed`, each with `step`
            and `time` (seconds since 1970). While it is not there nobody was killed yet.
        share: of all steps, after which it happens.
    """

    def __init__(self, note: str, share: float = 0.4):
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
        files, path = storage.file_system(self.note)
        with files.open_output_stream(path) as stream:
            stream.write(json.dumps(self.seen).encode())


def read(note: str) -> dict[str, dict[str, float]]:
    """Step and time at which a worker was killed, and of the first step after it; nothing without both, as
    where the run was stopped in between and went on with `KILL_WORKER=0`."""
    seen = _read(note)
    return seen if "resumed" in seen else {}


def _read(note: str) -> dict[str, dict[str, float]]:
    files, path = storage.file_system(note)
    if not files.get_file_info(path).is_file:
        return {}
    with files.open_input_stream(path) as stream:
        return json.loads(stream.read())
