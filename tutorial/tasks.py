"""The task, one of tasks/*.yaml: how its rows are laid out, what is asked, what an answer may hold."""

import importlib.util
import traceback
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, PrivateAttr, ValidationError, model_validator

from tutorial import TutorialError, one_line
from tutorial.meaning import Description
from tutorial.settings import ROOT, first_error, read_yaml

SPLITS = ("train", "val", "test")


class Columns(BaseModel):
    """The names of a row's columns."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = Field(None, description="the system turn; without it, the task's system_prompt")
    prompt: str = Field(description="the user turn")
    response: str = Field(description="the answer to learn")


class Task(BaseModel):
    """One task. Without `meaning` its answers are plain text, scored by exact match alone."""

    model_config = ConfigDict(extra="forbid")

    columns: Columns
    system_prompt: str | None = None
    source: str | None = Field(None, description="address of the rows if DATA is not set")
    expected: dict[Literal["train", "val", "test"], PositiveInt] = Field({}, description="rows at the source")
    sample: str | None = Field(
        None, pattern=r"\.py$", description="a Python file beside the yaml whose rows(seed) need no network"
    )
    few_shot: PositiveInt = Field(4, description="examples in the few-shot prompt")
    max_tokens: PositiveInt = Field(96, description="tokens of an answer at most")
    meaning: Description | None = Field(None, description="functions and attributes of an answer")
    _path: Path = PrivateAttr(Path("task.yaml"))

    @model_validator(mode="after")
    def _one_system_turn(self) -> "Task":
        if bool(self.columns.system) == bool(self.system_prompt):
            raise ValueError("set either system_prompt or columns.system")
        return self

    @property
    def name(self) -> str:
        """The name of its file, without `.yaml`."""
        return self._path.stem

    def sample_rows(self) -> dict[str, list[dict[str, str]]] | None:
        """The embedded rows of each split, in the task's own columns; None if the task has no sample.

        Raises:
            TutorialError: the sample's Python file has no `rows(seed)`, or it fails.
        """
        if self.sample is None:
            return None
        file = self._path.parent / self.sample
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            rows = module.rows(0)
            return {split: list(rows[split]) for split in SPLITS}
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise TutorialError(f"{file.name}: no rows from rows(seed): {reason} ({where})") from error


def load(name: str) -> Task:
    """The task of tasks/`name`.yaml, or of a yaml file anywhere.

    Raises:
        TutorialError: there is no such file, it is not YAML, or a key in it is unknown, missing or wrong.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else ROOT / "tasks" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in (ROOT / "tasks").glob("*.yaml")))
        raise TutorialError(f"TASK={name}: No such file; set TASK to one of {known}, or to a yaml file")
    try:
        task = Task.model_validate(read_yaml(path))
    except ValidationError as error:
        raise TutorialError(f"{path.name}: {first_error(error)}") from None
    task._path = path
    if task.sample and not (path.parent / task.sample).is_file():
        raise TutorialError(f"{path.name}: sample: there is no file {task.sample} beside it")
    return task
