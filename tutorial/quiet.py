"""Keep the page readable: the engines' log lines go to files, an error in a cell is still an error."""

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator

from tutorial.settings import ROOT

LATE_S = 2  # Ray reports a process that died, now and then after the error of who waited for it


def cells() -> None:
    """Log errors alone from here on; lines that C++ code writes to standard error go to out/native.log.

    For a notebook's own process. The processes that Ray starts log to Ray's folder, as they always do.
    """
    logging.disable(logging.WARNING)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    path = ROOT / "out" / "native.log"
    path.parent.mkdir(exist_ok=True)
    if "ipykernel" not in sys.modules:  # in a script Python's own errors go there too
        return
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)  # Python's own sys.stderr is not this one in a notebook
    os.close(log)


@contextlib.contextmanager
def reports() -> Iterator[None]:
    """Around what ends processes of Ray's: its reports of that, on standard output, are in its logs too."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except Exception:
            time.sleep(LATE_S)
            raise
