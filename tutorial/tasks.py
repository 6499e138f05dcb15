"""The task, one of tasks/*.yaml: how its rows are laid out, what is asked, what an answer may hold."""

import importlib.util
import traceback
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PositiveInt, ValidationError, model_validator

from tutorial import TutorialError, first_error, layouts, one_line, schema, slug, sources, tables
from tutorial.layouts import Columns, Row
from tutorial.meaning import Description, check, parse
from tutorial.settings import ROOT, read_yaml

SPLITS = ("train", "val", "test")
DEFAULT = "viggo"
SAMPLE = "sample"  # what DATA says of a task's synthetic rows
Labels = Annotated[list[Annotated[str, Field(pattern=r"^\S(.*\S)?$")]], Field(min_length=2)]
Schema = Annotated[dict[str, Any], AfterValidator(schema.check_schema)]


class Task(BaseModel, extra="forbid"):
    """One task. If it says nothing of its answers, the training rows show of what kind they are."""

    columns: Columns | None = Field(None, description="if not set, they are found by their names")
    system_prompt: str | None = Field(None, description="of rows that have no system turn of their own")
    source: str | None = Field(None, description="address of the rows if DATA is not set")
    expected: dict[Literal["train", "val", "test"], PositiveInt] = Field({}, description="rows at the source")
    sample: str | None = Field(None, pattern=r"\.py$", description="a file whose rows(seed) need no network")
    few_shot: PositiveInt = Field(4, description="examples in a few-shot prompt; if not set, 4 at most")
    max_tokens: PositiveInt | None = Field(
        None, description="of an answer; if not set, `Chat.check` finds it"
    )
    answers: Literal["label", "JSON", "text"] | None = Field(None, description="their kind")
    meaning: Description | None = Field(None, description="functions and attributes of an answer")
    labels: Labels | None = Field(None, description="the labels that an answer may be")
    json_schema: Schema | None = Field(None, description="JSON Schema of an answer")
    _path: Path = Path("task.yaml")

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Task":
        if len(self._kinds()) > 1:
            raise ValueError("answers, meaning, labels and json_schema say different kinds; set one of them")
        if self.columns and self.columns.system and self.system_prompt:
            raise ValueError("set either system_prompt or columns.system")
        return self

    def _kinds(self) -> set[str]:
        given = {"meaning": self.meaning, "label": self.labels, "JSON": self.json_schema}
        return {kind for kind, value in given.items() if value is not None} | ({self.answers} - {None})

    @property
    def kind(self) -> str | None:
        """What the answers are: `meaning`, `label`, `JSON` or `text`; None if the file does not say it."""
        return next(iter(self._kinds()), None)

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

    def layout(self, names: list[str], file: str) -> Columns | None:
        """The columns of a file's rows, of which some have these `names`; None if no row has any.

        Raises:
            TutorialError: neither the task nor the names say what the columns are, or a column that the task
                names is not among them.
        """
        for key, name in self.columns or ():
            if names and name and name not in names and key not in ("query", "history"):
                wrong = f"columns.{key}: {file} has no column {name!r}; it has {', '.join(map(repr, names))}"
                raise TutorialError(f"{self._path.name}: {wrong[:300]}")
        try:
            return self.columns or (layouts.find(names) if names else None)
        except TutorialError as error:
            raise TutorialError(f"{file}: {error}") from None

    def check(self, answer: str) -> None:
        """Whether an answer of a row can be one of this task.

        Raises:
            ValueError: it is not of the kind that the file says, or the file does not allow it.
        """
        if self.meaning:
            check(parse(answer), self.meaning)
        elif self.labels and answer.strip() not in self.labels:
            raise ValueError(f"{answer.strip()[:60]!r} is none of the task's labels")
        elif self.kind == "JSON":
            schema.check(schema.parse(answer), self.json_schema or {})

    def read(self, raw: object, columns: Columns | None) -> Row:
        """From a row as it is in a file to a row of `layouts`.

        Raises:
            ValueError: `raw`, if it is one; it has no columns, or one is missing, not a text or empty; or the
                task does not allow the answer.
        """
        if isinstance(raw, ValueError):
            raise raw
        if columns is None or not isinstance(raw, dict):
            raise ValueError("an object with columns is needed")
        row = columns.read(raw)
        try:
            self.check(row["output"])
        except ValueError as error:
            raise ValueError(f"column {columns.response or columns.messages!r}: {error}") from None
        return row | {"instruction": row["instruction"] or self.system_prompt or ""}

    def sample_rows(self) -> dict[str, list[Row]] | None:
        """The synthetic rows of each split, as `read` gives them; None if the task has no sample.

        Raises:
            TutorialError: the sample's Python file has no `rows(seed)`, it fails, or one of its rows is bad.
        """
        if self.sample is None:
            return None
        file, where = self._path.parent / self.sample, "no rows from rows(seed)"
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module, columns, found = importlib.util.module_from_spec(spec), None, {}
        try:
            spec.loader.exec_module(module)
            made = module.rows(0)
            for split in SPLITS:
                found[split] = []
                for number, raw in enumerate(made[split], start=1):
                    where = f"{split}, row {number}"
                    columns = columns or self.columns or layouts.find(raw)
                    found[split].append(self.read(raw, columns))
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
        raise TutorialError(f"{path.name}: {first_error(error, Task)}") from None
    task._path = path
    if task.sample and not (path.parent / task.sample).is_file():
        raise TutorialError(f"{path.name}: sample: there is no file {task.sample} beside it")
    return task


def choose(name: str | None, source: str | None) -> Task:
    """The task that `TASK` names. If it names none: `DEFAULT`, unless `DATA` is set and none of its first
    `tables.HEAD` rows fits that task. Then the task is made from `DATA`, whose name it has.

    Raises:
        TutorialError: the task or the rows cannot be read, or the columns do not say what they are.
    """
    task = load(name or DEFAULT)
    if name or source in {None, SAMPLE}:
        return task
    plain = Task.plain(slug(source))
    file = next(iter(sources.find(source).values()))[0]
    with file.open() as stream:
        _, names, rows = tables.read(stream, file.name)
        plain.layout(names, file.name)
        for row in islice((row.value for row in rows if isinstance(row.value, dict)), tables.HEAD):
            with suppress(ValueError):
                task.read(row, task.columns)
                return task
    return plain
