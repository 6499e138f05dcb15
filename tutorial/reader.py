"""The rows of a file, as a task reads them; bad ones are set aside or end the run."""

import json
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path

from tutorial import TutorialError, one_line, tables
from tutorial.layouts import Layout, Row
from tutorial.sources import UNREACHABLE, UNREADABLE, File, unreadable
from tutorial.tasks import Task

HEAD = 20  # rows, at least, whose columns say how a file is laid out


def of_files(
    files: list[File], address: str, task: Task, rejected: Path | None, found: dict[str, str]
) -> Iterator[Row]:
    """The rows of all `files` of a split at an address; see `parse`. Raises what `UNREACHABLE` names, too."""
    for file in files:
        try:
            with file.open() as stream:
                yield from parse(stream, file.name, task, rejected, found)
        except UNREADABLE as error:
            if type(error) in UNREACHABLE:
                raise
            raise unreadable(address, error, file.name) from None
    if len(files) > 1:
        found["file"] = f"{files[0].name} and {len(files) - 1} more"


def begin(raws: Iterator[tables.Raw], file: str, task: Task) -> tuple[list[tables.Raw], Layout | None]:
    """The first rows of a file, and how they are laid out; None if no row has columns. TutorialError, naming
    the `file`, if neither the task nor the columns say so."""
    head, names = [], {}
    for raw in raws:  # until there is a row with columns; a row may lack some of them
        head.append(raw)
        names |= dict.fromkeys(raw.value if isinstance(raw.value, dict) else ())
        if names and len(head) >= HEAD:
            break
    try:
        return head, task.layout(names) if names or task.columns else None
    except TutorialError as error:
        raise TutorialError(f"{file}: {error}") from None


def parse(
    stream: BufferedReader,
    file: str,
    task: Task,
    rejected: Path | None = None,
    found: dict[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of one file. `found` gets its name, type, layout and columns.

    Raises:
        TutorialError: it has another type, no layout, or no good row; or a row, which the error names by its
            line or number from 1, is bad and `rejected` is None.
    """
    kind, raws = tables.read(stream, file)
    head, layout = begin(raws, file, task)
    read, good, first = task.row_reader(layout), 0, ""
    for raw in chain(head, raws):
        try:
            yield read(raw.value)
            good += 1
        except ValueError as error:
            reason, (unit, number) = one_line(error)[:300], raw.place
            first = first or f"{file}, {unit} {number}: {reason}"
            if rejected is None:
                raise TutorialError(f"{first}; mend it, or set SKIP_BAD_ROWS=1") from None
            bad = {"file": file, unit: number, "reason": reason, "text": raw.shown()}
            rejected.parent.mkdir(parents=True, exist_ok=True)
            with rejected.open("a", encoding="utf-8") as out:
                out.write(json.dumps(bad, ensure_ascii=False) + "\n")
    if not good:
        bad = f"no row is good, all are in {rejected}; the first: {first}"
        raise TutorialError(f"{file}: {bad if first else 'the split is empty; set DATA to files with rows'}")
    if found is not None:
        found |= {"file": file, "type": kind, "layout": layout.name, "columns": layout.taken()}
