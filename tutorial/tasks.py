"""The task, one of tasks/*.yaml: how its rows are laid out, what is asked, what an answer may hold."""

import importlib.util
import json
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)

from tutorial import TutorialError, one_line
from tutorial.settings import ROOT, first_error, read_yaml
from tutorial.targets import Targets

LONGEST_LINE = 64 * 2**20  # bytes that are held of a file without line ends
SPLITS = ("train", "val", "test")
WORDS = {  # pydantic's type of an error, in words
    "missing": "it is missing",
    "string_type": "a text is needed",
    "string_pattern_mismatch": "a text is needed, and this one is empty",
    "string_unicode": "half of a surrogate pair, which is not text",
    "model_type": "an object with columns is needed",
}
Row = dict[str, str]


class Columns(BaseModel):
    """The names of a row's columns."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = Field(None, description="the system turn; without it, the task's system_prompt")
    prompt: str = Field(description="the user turn")
    response: str = Field(description="the answer to learn")


class Task(Targets):
    """One task."""

    columns: Columns
    system_prompt: str | None = None
    source: str | None = Field(None, description="address of the rows if DATA is not set")
    expected: dict[Literal["train", "val", "test"], PositiveInt] = Field({}, description="rows at the source")
    sample: str | None = Field(
        None, pattern=r"\.py$", description="a Python file beside the yaml whose rows(seed) need no network"
    )
    few_shot: PositiveInt = Field(4, description="examples in the few-shot prompt")
    max_tokens: PositiveInt = Field(96, description="tokens of an answer at most")
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

    def row_reader(self) -> Callable[[object], Row]:
        """A function from a row as it is in a file to one of `instruction`, `input` and `output`. It raises
        ValueError if a column is missing, not a text or empty, or if the task refuses the answer."""

        def allowed(answer: str) -> str:
            self.check(answer)
            return answer

        text = Annotated[str, Field(pattern=r"\S")]
        names = {"instruction": self.columns.system, "input": self.columns.prompt}
        columns = {key: (text, Field(alias=name)) for key, name in names.items() if name}
        columns["output"] = (Annotated[text, AfterValidator(allowed)], Field(alias=self.columns.response))
        model = create_model("Row", __config__=ConfigDict(strict=True), **columns)

        def read(raw: object) -> Row:
            try:
                return {"instruction": self.system_prompt} | model.model_validate(raw).model_dump()
            except ValidationError as error:
                found = error.errors()[0]
                column = f"column {found['loc'][0]!r}: " if found["loc"] else ""
                there = f"; there are {', '.join(map(repr, raw))}" if found["type"] == "missing" else ""
                words = WORDS.get(found["type"], found["msg"].removeprefix("Value error, "))
                raise ValueError(f"{column}{words}{there}") from None

        return read

    def sample_rows(self) -> dict[str, list[Row]] | None:
        """The embedded rows of each split, as `row_reader` reads them; None if the task has no sample.

        Raises:
            TutorialError: the sample's Python file has no `rows(seed)`, it fails, or one of its rows is bad.
        """
        if self.sample is None:
            return None
        file, where, read = self._path.parent / self.sample, "no rows from rows(seed)", self.row_reader()
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        found = {split: [] for split in SPLITS}
        try:
            spec.loader.exec_module(module)
            made = module.rows(0)
            for split, rows in found.items():
                for number, raw in enumerate(made[split], start=1):
                    where = f"{split}, row {number}"
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


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of each line that is not blank; of one longer than `LONGEST_LINE`, its
    beginning, one byte too long."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number, rest = number + 1, line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE or line.strip():
            yield number, line


def decode(line: bytes) -> object:
    """The JSON value of one line. Raises ValueError: what is wrong with it."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE // 2**20} MiB")
    cut = "" if line.endswith(b"\n") else "; the file ends here, it may be cut off"
    try:
        return json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason}, byte {error.start + 1}){cut}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}: column {error.colno}){cut}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; ValueError if Python would read it otherwise than other programs."""
    found = {}
    for column, value in pairs:
        if column in found:
            raise ValueError(f"column {column!r}: it is given twice")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"column {column!r}: {value} is not JSON")
        found[column] = value
    return found
