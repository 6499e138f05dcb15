"""What README.ipynb imports so that its cells can stay with Ray, LLaMA-Factory and vLLM.

settings  what the environment, `.env` and profiles/*.yaml say      task     the file of tasks/ that is in use
data      the task's rows, read and validated                       lengths  do prompts and answers fit?
sample    ViGGO-like rows for work without a network                trains   rows of the second task
storage   the run's files: a folder, s3:// or gs://                 model    the base model's folder
meaning   meaning representations: parse, check, grammar            recipe   the LLaMA-Factory yaml
score     how good the answers are                                  mistakes what is wrong with the wrong ones
serving   start a service, wait until it answers                    results  results.json
plots     pictures and tables                                       quiet    log lines out of the cells
look      colours and fonts of all pictures                         failure  its one line, and its files
sabotage  the worker that stage 3 kills                             metrics  what Ray and vLLM count
adapters  what is published of an adapter                           endpoint keys before the service
run, page `make run`, `make page`
"""

import time

STARTED = time.monotonic()  # when a run began


class TutorialError(Exception):
    """A mistake that its reader can mend: one line that says what is wrong, where, and what to set."""

    def _render_traceback_(self) -> list[str]:  # what IPython prints instead of a stack of frames
        return [f"{type(self).__name__}: {self}"]


def one_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
