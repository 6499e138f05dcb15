"""What is left of a failure that happened in one of Ray's workers: one line, and the files that it had."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.train import TrainingFailedError

from tutorial import TutorialError, one_line, quiet


def reason(error: Exception) -> str:
    """One line of an error: that memory ran out, or its last line, where a traceback ends."""
    # Ray Train's own text is cut, in the middle of the long message with which PyTorch says so.
    error = next(iter(getattr(error, "worker_failures", {}).values()), error)
    if "out of memory" in str(error):
        return "out of memory"
    if isinstance(error, TutorialError | ExecutionTimeoutError):
        return one_line(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"[:300]


@contextmanager
def in_one_line(stage: str, hint: str, kept: Path | None = None) -> Iterator[None]:
    """Around a stage: what Ray reports on many lines becomes a `TutorialError`, its cause the whole report.

    What Ray prints about processes that died and were started again is in its logs alone.

    Args:
        stage: the stage, for the line.
        hint: what to set or do.
        kept: the folder that has the stage's files, if there are any; deleted if all goes well.
    """
    try:
        with quiet.reports():
            yield
        if kept:
            shutil.rmtree(kept, ignore_errors=True)
    except (RayError, TrainingFailedError, ExecutionTimeoutError) as error:
        files = f"; its files are kept in {kept}" if kept and kept.exists() else ""
        raise TutorialError(f"{stage}: {reason(error)}{files}; {hint}") from error


@contextmanager
def kept(folder: str) -> Iterator[str]:
    """A new folder below `folder` to work in. It is deleted if all goes well; else, also where the process is
    killed, what is in it stays, as the storage may be what failed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    work = tempfile.mkdtemp(dir=folder)
    yield work
    shutil.rmtree(work)
