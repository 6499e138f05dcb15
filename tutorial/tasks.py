"""The task, one of tasks/*.yaml: how its rows are laid out, what is asked, what an answer may hold."""

import importlib.util
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, PrivateAttr, ValidationError, model_validator

from tutorial import TutorialError, one_line
from tutorial.layouts import Columns, Layout, Row, find
from tutorial.settings import ROOT, first_error, read_yaml
from tutorial.targets import Targets

SPLITS = ("train", "val", "test")
DEFAULT = "viggo"
SAMPLE = "sample"  # what DATA says of a task's synthetic rows


class Task(Targets):
    """One task."""

    columns: Columns | None = Field(None, description="if not set, they are found by their names")
    system_prompt: str | None = Field(None, description="of rows that have no system turn of their own")
    source: str | None = Field(None, description="address of the rows if DATA is not set")
    expected: dict[Literal["train", "val", "test"], PositiveInt] = Field({}, description="rows at the source")
    sample: str | None = Field(
        None, pattern=r"\.py$", description="a Python file beside the yaml whose rows(seed) need no network"
    )
    few_shot: PositiveInt = Field(
        4, description="examples in the few-shot prompt; unless said, those that fit"
    )
    max_tokens: PositiveInt | None = Field(
        None, description="of an answer; `Chat.check` finds it unless said"
    )
    _path: Path = PrivateAttr(Path("task.yaml"))

    @model_validator(mode="after")
    def _one_system_turn(self) -> "Task":
        if self.columns and self.columns.system and self.system_prompt:
            raise ValueError("set either system_prompt or columns.system")
        return self

    @property
    def name(self) -> str:
        """The name of its file, without `.yaml`."""
        return self._path.stem

    @classmethod
    def plain(cls, name: str) -> "Task":
        """A task without a file: its rows say what they are."""
        task = cls()
        task._path = Path(f"{name}.yaml")
        return task

    def layout(self, names: Iterable[str] = ()) -> Layout:
        """How rows with these columns are laid out; TutorialError if neither the task nor they say so."""
        return Layout(f"as {self._path.name} says", self.columns, said=True) if self.columns else find(names)

    def row_reader(self, layout: Layout | None) -> Callable[[object], Row]:
        """A function from a row as it is in a file to a row of `layouts`. It raises ValueError if a column is
        missing, not a text or empty, or if the task refuses the answer. No layout: no row has columns."""

        def read(raw: object) -> Row:
            if isinstance(raw, ValueError):
                raise raw
            if layout is None:
                raise ValueError("an object with columns is needed")
            row = layout.read(raw)
            try:
                self.check(row["output"])
            except ValueError as error:
                column = layout.columns.response or layout.columns.messages
                raise ValueError(f"column {column!r}: {error}") from None
            return row | {"instruction": row["instruction"] or self.system_prompt or ""}

        return read

    def sample_rows(self) -> dict[str, list[Row]] | None:
        """The embedded rows of each split, as `row_reader` reads them; None if the task has no sample.

        Raises:
            TutorialError: the sample's Python file has no `rows(seed)`, it fails, or one of its rows is bad.
        """
        if self.sample is None:
            return None
        file, where, read = self._path.parent / self.sample, "no rows from rows(seed)", None
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        found = {split: [] for split in SPLITS}
        try:
            spec.loader.exec_module(module)
            made = module.rows(0)
            for split, rows in found.items():
                for number, raw in enumerate(made[split], start=1):
                    where = f"{split}, row {number}"
                    read = read or self.row_reader(self.layout(raw))
                    rows.append(read(raw))
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            if line.filename == str(file):
                where = f"line {line.lineno}: {type(error).__name__}"
            raise TutorialError(f"{file.name}: {where}: {one_line(error)[:300]}") from error
        return found


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
