"""What README.ipynb imports so that its cells can stay with Ray, LLaMA-Factory and vLLM.

settings  what the environment, `.env` and profiles/*.yaml say      recipe   the LLaMA-Factory yaml
data      ViGGO or the sample, read and validated                   model    the base model's folder
sample    the embedded sample                                       score    exact match
storage   the run's files: a folder, s3:// or gs://                 serving  wait until it answers
plots     pictures and tables                                       results  results.json
run       `make run`                                                quiet    log lines out of the cells
"""


class TutorialError(Exception):
    """A mistake that its reader can mend: one line that says what is wrong, where, and what to set."""

    def _render_traceback_(self) -> list[str]:  # what IPython prints instead of a stack of frames
        return [f"{type(self).__name__}: {self}"]


def one_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
