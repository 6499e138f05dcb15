"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, combinations
from pathlib import Path

import pyarrow.parquet

from tutorial import TutorialError, reader, slug, sources, tables, tasks
from tutorial.layouts import Row
from tutorial.sources import UNREACHABLE, UNREADABLE
from tutorial.tasks import SAMPLE, SPLITS, Task


class Drawn(list):
    """Rows of a split; `read`: how many there were to draw from; `found`: file, type, layout and columns."""

    read, found = 0, {}


def choose(name: str | None, source: str | None) -> Task:
    """The task that `TASK` names. If it names none: `tasks.DEFAULT`, unless `DATA` has rows that are not that
    task's. Then the task is made from `DATA`, whose name it has.

    Raises:
        TutorialError: the task or the rows cannot be read, or the columns do not say what they are.
    """
    task = tasks.load(name or tasks.DEFAULT)
    if name or source in {None, SAMPLE}:
        return task
    plain = Task.plain(slug(source))
    try:
        file = next(iter(sources.find(source).values()))[0]
        with file.open() as stream:
            head, _ = reader.begin(tables.read(stream, file.name)[1], file.name, plain)
    except UNREADABLE as error:
        raise sources.unreadable(source, error) from None
    read = task.row_reader(task.layout())
    for raw in head:
        try:
            read(raw.value)
            return task
        except ValueError:
            pass
    return plain


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

    def take(rows: Iterable[Row], split: str, found: dict[str, str]) -> Drawn:
        drawn = Drawn(rows) if counts is None else pick(rows, counts.get(split), seed)
        drawn.read, drawn.found = max(drawn.read, len(drawn)), found
        return drawn

    address, splits = source or task.source or SAMPLE, {}
    if address == SAMPLE:
        if task.sample is None:
            raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
        made = task.sample_rows().items()
        return {split: take(rows, split, {"file": task.sample}) for split, rows in made}
    try:
        files = sources.find(address)
        found = {split: {} for split in files}
        parts = {
            split: reader.of_files(part, address, task, rejected, found[split])
            for split, part in files.items()
        }
        if missing := [split for split in SPLITS if split not in parts]:
            parts |= divide(parts["train"], missing, seed)
        for split in SPLITS:
            splits[split] = take(parts[split], split, found.get(split, found["train"]))
    except UNREADABLE as error:
        unreachable = type(error) in UNREACHABLE and not splits
        if source or not (sample_allowed and task.sample and unreachable):
            raise sources.unreadable(address, error) from None
        print(f"{address} cannot be reached within {sources.TIMEOUT_S} s: using synthetic data.")
        return load(task, SAMPLE, counts=counts, seed=seed)
    if rejected and rejected.exists():
        bad = rejected.read_bytes().count(b"\n")
        total = bad + sum(part.read for part in splits.values())
        print(f"SKIP_BAD_ROWS: {bad} of {total} rows are bad and were set aside in {rejected}")
    drawn = list(chain.from_iterable(splits.values()))
    if any("history" in row for row in drawn):
        for row in drawn:  # Ray Data takes the columns of the first row for those of all
            row.setdefault("history", [])
    return splits


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
    """How many rows of one split are in another, in one line: a score on rows that training saw says little.
    Also how many test rows have an answer, if not a question, that is in train."""
    pairs = {split: {(question(row), row["output"]) for row in rows} for split, rows in splits.items()}
    twice = (f"{len(pairs[a] & pairs[b])} in {a} and {b}" for a, b in combinations(pairs, 2))
    known = {output for _, output in pairs["train"]}
    shared = sum(row["output"] in known for row in splits["test"])
    return (
        f"{shared} of {len(splits['test'])} test rows have an answer that also occurs in train; "
        f"rows that occur in two splits: {', '.join(twice)}"
    )


def write(splits: dict[str, list[Row]], folder: Path, columns: dict[str, str] | None = None) -> list[str]:
    """Write a Parquet file a split and LLaMA-Factory's key to them, `dataset_info.json`; return the names.

    Parquet keeps types; of JSON lines LLaMA-Factory's reader guesses them: `2024-01-31` becomes a date. By
    default the instruction is the system turn; LLaMA-Factory's own default joins it into the user turn.
    """
    columns = columns or {"system": "instruction", "prompt": "input", "response": "output"}
    if not any(row.get("history") for rows in splits.values() for row in rows):
        columns = {part: name for part, name in columns.items() if part != "history"}
    text = pyarrow.string()
    kinds = {
        name: pyarrow.list_(pyarrow.list_(text)) if part == "history" else text
        for part, name in columns.items()
    }
    info = {split: {"file_name": f"{split}.parquet", "columns": columns} for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(kinds.items())))
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    lines = ",\n".join(f"  {json.dumps(split)}: {json.dumps(entry)}" for split, entry in info.items())
    (folder / "dataset_info.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return [*(f"{split}.parquet" for split in splits), "dataset_info.json"]
