"""What README.ipynb imports so that its cells can stay with Ray, LLaMA-Factory and vLLM.

settings  the environment, `.env`, profiles/*.yaml  cluster   Ray: before it starts, what it leaves behind
tasks     one of tasks/*.yaml                       data      the task's rows: read, divided, drawn, written
sources   the files that DATA names                 tables    JSON lines, a JSON array, CSV, TSV, Parquet
layouts   a row's columns, and what they mean       prompt    how the model is asked, proved by tokens
recipe    the LLaMA-Factory yaml, checked whole     template  the chat template of training and engines
kind      what an answer is, what is measured of it score     how good the answers are, how sure that is
answers   their kind, found or said; labels, text   plots     pictures and tables
meaning   answers: meaning representations          schema    answers: JSON objects
batch     questions and answers of batch inference  gpus      the memory of GPUs, and what fits
files     a folder, https://, s3:// or gs://        storage   the run's prefix
s3server  the run's own S3 server                   model     the base model's folder
adapters  what is published of an adapter           training  what surrounds the loop in Ray Train's workers
session   a run: its storage, seconds, results.json stage     errors in one line; writes results.json
callbacks what the trainer calls after each step    serving   starts a service, and asks it
machine   cores, memory and disk of this machine    summary   what a run had, and its scores, in short
endpoint  the service: keys, models, answers        door      checks of a request; errors in one envelope
replica   the engine's process                      run       `make run`; cells by name
progress  a line that says how far a call is        merged    an adapter and its base model as one; its card
export    `make export`: the merged model, the push gguf      `make gguf`: for Ollama and llama.cpp
smollm2   the small model                           quickstart  a faster start of its engine
terminal  what `make run` says
"""

import re
import time
from pathlib import Path
from typing import get_args

STARTED = time.monotonic()  # when a run began
PROGRESS = "tutorial-progress"  # a display of the notebook whose id begins with this says how far the run is
PRINTED_S = 10  # seconds after which what is under way is printed again, if a line cannot be replaced


class TutorialError(Exception):
    """A mistake that its reader can mend: one line that says what is wrong, where, and what to set."""

    def _render_traceback_(self) -> list[str]:  # what IPython prints instead of a stack of frames
        return [f"{type(self).__name__}: {self}"]


def one_line(error: Exception | str) -> str:
    """The first line of an error's text, or its name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_error(error, model=None) -> str:
    """The first finding of pydantic's ValidationError as one line that names the key. If the key is unknown,
    and `model` is the class whose keys are checked, the line lists those that there are."""
    found = error.errors()[0]
    message, key = one_line(found["msg"].removeprefix("Value error, ")), ".".join(map(str, found["loc"]))
    if model and found["type"] == "extra_forbidden":
        for part in found["loc"][:-1]:
            kind = model.model_fields[part].annotation
            model = next(each for each in (kind, *get_args(kind)) if hasattr(each, "model_fields"))
        message = f"there is no such key; the keys are {', '.join(model.model_fields)}"
    name = f"{key.upper()}={found['input']!r}" if error.title == "Settings" else key
    return f"{name}: {message}" if key else message


def slug(address: str) -> str:
    """The name of the file or folder at an address, in small letters, digits and hyphens."""
    name = re.split(r"[?#]", address)[0].rstrip("/").rpartition("/")[2].split(".")[0]
    return re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "task"


def read_text(path: Path) -> str:
    """The text of a user's file; TutorialError if it cannot be read or is not UTF-8, naming the line."""
    try:
        return (content := path.read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise TutorialError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TutorialError(f"{path.name}: line {line}: not UTF-8; save the file as UTF-8") from None
