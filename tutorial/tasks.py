"""The task, one of tasks/*.yaml: how its rows are laid out, what is asked, what an answer may hold."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from tutorial import TutorialError
from tutorial.meaning import Description
from tutorial.settings import ROOT, read_yaml


class Columns(BaseModel):
    """The names of a row's columns."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = Field(None, description="the system turn; without it, the task's system_prompt")
    prompt: str = Field(description="the user turn")
    response: str = Field(description="the answer to learn")


class Task(BaseModel):
    """One task. Without `meaning` its answers are plain text, scored by exact match alone."""

    model_config = ConfigDict(extra="forbid")

    name: str
    columns: Columns
    system_prompt: str | None = None
    source: str | None = Field(
        None, pattern="^https?://", description="address of the rows, if DATA does not say so"
    )
    expected: dict[Literal["train", "val", "test"], PositiveInt] = Field({}, description="rows at the source")
    sample: str | None = Field(None, description="module of this project whose rows(seed) need no network")
    few_shot: PositiveInt = Field(4, description="examples in the few-shot prompt")
    max_tokens: PositiveInt = Field(96, description="tokens of an answer at most")
    meaning: Description | None = Field(None, description="functions and attributes of an answer")

    @model_validator(mode="after")
    def _one_system_turn(self) -> "Task":
        if bool(self.columns.system) == bool(self.system_prompt):
            raise ValueError("set either system_prompt or columns.system")
        return self

    def sample_module(self) -> ModuleType | None:
        """The module that makes the task's embedded rows, None if it has none."""
        return importlib.import_module(self.sample) if self.sample else None


def load(name: str) -> Task:
    """The task of tasks/`name`.yaml, or of a yaml file anywhere.

    Raises:
        TutorialError: there is no such file, it is no yaml, or a key in it is unknown, missing or wrong.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else ROOT / "tasks" / f"{name}.yaml"
    try:
        return Task(name=path.stem, **read_yaml(path))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in (ROOT / "tasks").glob("*.yaml")))
        raise TutorialError(
            f"TASK={name}: {error.strerror}; set TASK to one of {known}, or to a yaml file"
        ) from None
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in found["loc"]) or "task"
        raise TutorialError(f"{path.name}: {key}: {found['msg']}") from None
