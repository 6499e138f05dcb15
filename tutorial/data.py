"""The task's rows: read, checked one by one, divided, drawn, and written for LLaMA-Factory."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain, combinations
from pathlib import Path

import pyarrow.parquet

from tutorial import TutorialError, one_line, sources, tables
from tutorial.kind import Seen
from tutorial.layouts import Row
from tutorial.sources import File
from tutorial.tasks import SAMPLE, SPLITS, Task


class Drawn(list):
    """Rows of a split; `read` and `seen`: how many there were to draw from, and their answers; `found`: file,
    type, layout and columns."""

    read, found, seen = 0, {}, Seen()


def load(
    task: Task,
    source: str | None = None,
    rejected: Path | None = None,
    sample_allowed: bool = True,
    *,
    counts: dict[str, int | None] | None = None,
    seed: int = 0,
) -> dict[str, Drawn]:
    """The rows of the splits train, val and test, as `layouts` describes them.

    Args:
        source: what `sources.find` takes, or `sample`; None: the task's own source, or its sample. What has
            no val or test is divided (see `divide`), and held in memory whole.
        rejected: the file for bad rows (JSON lines: file, line or row, reason, text); None: a bad row is an
            error.
        sample_allowed: without `source`, use the sample, and say so, if the task's own cannot be reached.
        counts: rows of each split to draw while reading, as `pick` does; None: all, in the files' order.
        seed: of everything that is drawn.

    Raises:
        TutorialError: a file is missing, cannot be read to its end or has no good row, its columns do not say
            what they are, or a row is bad and `rejected` is None; names the file, and the line or row.
    """
    if rejected:
        rejected.unlink(missing_ok=True)
    address, found, splits = source or task.source or SAMPLE, {split: {} for split in SPLITS}, {}

    def rows_of(files: list[File], about: dict[str, str]) -> Iterator[Row]:
        for file in files:
            with file.open() as stream:
                yield from parse(stream, file.name, task, rejected, about)
        if len(files) > 1:
            about["file"] = f"{files[0].name} and {len(files) - 1} more"

    try:
        if address == SAMPLE:
            parts = task.sample_rows()
            if parts is None:
                raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
            found = {split: {"file": task.sample} for split in SPLITS}
        else:
            parts = {split: rows_of(files, found[split]) for split, files in sources.find(address).items()}
        if missing := [split for split in SPLITS if split not in parts]:
            parts |= divide(parts["train"], missing, seed)
            found |= dict.fromkeys(missing, found["train"])
        for split in SPLITS:
            rows = (seen := Seen()).through(parts[split])
            drawn = Drawn(rows) if counts is None else pick(rows, counts.get(split), seed)
            drawn.read, drawn.found, drawn.seen = max(drawn.read, len(drawn)), found[split], seen
            splits[split] = drawn
    except TutorialError as error:
        if source or splits or not (sample_allowed and task.sample and getattr(error, "unreachable", False)):
            raise
        print(f"{address} cannot be reached within {sources.TIMEOUT_S} s: using synthetic data.")
        return load(task, SAMPLE, counts=counts, seed=seed)
    if rejected and rejected.exists():
        bad, good = rejected.read_bytes().count(b"\n"), sum(part.read for part in splits.values())
        print(f"SKIP_BAD_ROWS: {bad} of {bad + good} rows are bad and were set aside in {rejected}")
    drawn = list(chain.from_iterable(splits.values()))
    if any("history" in row for row in drawn):
        for row in drawn:  # Ray Data takes the columns of the first row for those of all
            row.setdefault("history", [])
    return splits


def parse(
    stream: BufferedReader, file: str, task: Task, rejected: Path | None = None, found: dict | None = None
) -> Iterator[Row]:
    """The rows of one file. `found` gets its name, type, layout and columns.

    Raises:
        TutorialError: it has another type, no layout, or no good row; or a row, which the error names by its
            line or number from 1, is bad and `rejected` is None.
    """
    kind, names, raws = tables.read(stream, file)
    columns, good, first = task.layout(names, file), 0, ""
    for raw in raws:
        try:
            yield task.read(raw.value, columns)
            good += 1
        except ValueError as error:
            reason, (unit, number) = one_line(error)[:300], raw.place
            first = first or f"{file}, {unit} {number}: {reason}"
            if rejected is None:
                hint = "" if "not UTF-8" in reason else "; mend it, or set SKIP_BAD_ROWS=1"
                raise TutorialError(f"{first}{hint}") from None
            bad = {"file": file, unit: number, "reason": reason, "text": raw.shown()}
            rejected.parent.mkdir(parents=True, exist_ok=True)
            with rejected.open("a", encoding="utf-8") as out:
                out.write(json.dumps(bad, ensure_ascii=False) + "\n")
    if not good:
        bad = f"no row is good, all are in {rejected}; the first: {first}"
        raise TutorialError(f"{file}: {bad if first else 'the split is empty; set DATA to files with rows'}")
    if found is not None:
        layout = columns.layout or f"as {task.name}.yaml says"
        found |= {"file": file, "type": kind, "layout": layout, "columns": columns.taken()}


def divide(rows: Iterable[Row], splits: Iterable[str], seed: int) -> dict[str, list[Row]]:
    """A tenth of the rows for each of `splits`, drawn at random, and `train` with the others. Rows that ask
    the same are in one split. TutorialError if there are fewer different questions than splits."""
    groups, parts = defaultdict(list), {}
    for row in rows:
        groups[question(row)].append(row)
    order, tenth = list(groups.values()), max(1, round(sum(map(len, groups.values())) / 10))
    if len(order) <= len(splits):
        few = f"DATA: too few different questions ({len(order)}) for {len(splits) + 1} splits"
        raise TutorialError(f"{few}; set DATA to more rows, or to a folder with train, val and test")
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: len(group) > tenth)  # many rows with one question go to train
    for left, split in zip(range(len(splits), 0, -1), splits, strict=True):
        parts[split] = order.pop(0)
        while len(parts[split]) < tenth and len(order) > left:
            parts[split] = parts[split] + order.pop(0)
    return parts | {"train": list(chain.from_iterable(order))}


def question(row: Row) -> str:
    """What is asked, without regard to case and white space."""
    asked = [row["instruction"], *chain.from_iterable(row.get("history", [])), row["input"]]
    return "\n".join(" ".join(part.split()).casefold() for part in asked)


def pick(rows: Iterable[Row], count: int | None, seed: int) -> Drawn:
    """`count` rows drawn at random (the first N would be whatever the file begins with), at most and for
    None all, in random order. Reads `rows` once, and holds no more of them than it returns."""
    drawn, draw = Drawn(), random.Random(seed)
    for number, row in enumerate(rows):
        drawn.read = number + 1
        if count is None or number < count:
            drawn.append(row)
        elif (place := draw.randrange(number + 1)) < count:
            drawn[place] = row
    draw.shuffle(drawn)
    return drawn


def summary(splits: dict[str, Drawn]) -> dict[str, dict[str, str | int]]:
    """What was found of each split: file, type, layout, columns, and how many rows were read and are used."""
    found = {split: part.found | {"read": part.read, "used": len(part)} for split, part in splits.items()}
    return {about: {split: each[about] for split, each in found.items()} for about in found["train"]}


def overlap(splits: dict[str, list[Row]]) -> str:
    """How many different rows of one split are in another, in one line: a score on rows that training saw
    says little. Also how many test rows have an answer, if not a question, that is in train."""
    pairs = {split: {(question(row), row["output"]) for row in rows} for split, rows in splits.items()}
    twice = (f"{len(pairs[a] & pairs[b])} in {a} and {b}" for a, b in combinations(pairs, 2))
    known = {output for _, output in pairs["train"]}
    shared = sum(row["output"] in known for row in splits["test"])
    answers = f"{shared} of {len(splits['test'])} test rows have an answer that also occurs in train"
    return f"{answers}; rows that occur in two splits: {', '.join(twice)}"


def write(splits: dict[str, list[Row]], folder: Path, columns: dict[str, str] | None = None) -> list[str]:
    """Write a Parquet file a split and LLaMA-Factory's key to them, `dataset_info.json`; return the names.

    Parquet keeps types; of JSON lines LLaMA-Factory's reader guesses them: `2024-01-31` becomes a date. By
    default the instruction is the system turn; LLaMA-Factory's own default joins it into the user turn.
    """
    columns = dict(columns or {"system": "instruction", "prompt": "input", "response": "output"})
    if not any(row.get("history") for rows in splits.values() for row in rows):
        columns.pop("history", None)
    kinds = {"history": pyarrow.list_(pyarrow.list_(text := pyarrow.string()))}
    fields = pyarrow.schema([(name, kinds.get(part, text)) for part, name in columns.items()])
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for split, rows in splits.items():
        file = f"{split}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, fields), folder / file)
        entries.append(f"  {json.dumps(split)}: {json.dumps({'file_name': file, 'columns': columns})}")
    (folder / "dataset_info.json").write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    return [*(f"{split}.parquet" for split in splits), "dataset_info.json"]
