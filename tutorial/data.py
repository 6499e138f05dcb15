"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import gzip
import io
import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet
import requests
import urllib3
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from tutorial import TutorialError, meaning, one_line
from tutorial.files import Place
from tutorial.tasks import Task

SPLITS = ("train", "val", "test")
TIMEOUT_S = 5
LONGEST_LINE = 64 * 2**20  # bytes that are held of a file without line ends
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREACHABLE = (requests.ConnectionError, requests.Timeout)
UNREADABLE = (OSError, EOFError, zlib.error, pyarrow.ArrowInvalid, urllib3.exceptions.HTTPError)
SHAPES = {  # what a file begins with that does not hold JSON lines
    rb"PAR1": "a Parquet file",
    rb"PK\x03\x04": "a zip archive or an Excel file",
    rb"ARROW1|\xff\xff\xff\xff": "an Arrow file",
    rb"\xff\xfe|\xfe\xff|(?s:.?)\x00": "UTF-16 text or binary",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf": "compressed twice, or not with gzip",
    rb"<": "an HTML or XML page, such as a login page or a bucket's error",
    rb"version https://git-lfs": "a pointer of Git LFS in place of the file",
    rb"\[": "a JSON array",
    rb"\{([^\n]*[\[{,:])?[ \t\r]*\n": "JSON with objects over several lines or commas between them",
    rb"[^{\n]*?[,;\t][^\n]*+\n?+\s*+([^{\s]|$)": "a table such as CSV",
    rb"[^{][^\n]*+\n?+\s*+([^{\s]|$)": "not JSON",
}
WORDS = {  # pydantic's type of error, in words
    "missing": "it is missing",
    "string_type": "a text is needed",
    "string_unicode": "half of a surrogate pair, which is not text",
    "model_type": "not an object with columns",
}

Rows = Sequence[dict[str, str]]


class Drawn(list):
    """Rows drawn at random. `read` is how many there were to draw from."""

    read = 0


class Rejected:
    """A file of the bad rows that were set aside: JSON lines with `file`, `line`, `reason` and `text`, the
    line as it was read. Without bad rows there is no file; one of an earlier run is deleted."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        path.unlink(missing_ok=True)

    def add(self, file: str, number: int, reason: str, line: bytes) -> None:
        text = line.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
        found = {"file": file, "line": number, "reason": reason, "text": text}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
        self.count += 1


def load(
    task: Task,
    source: str | None = None,
    rejected: Path | None = None,
    sample_allowed: bool = True,
    counts: dict[str, int | None] | None = None,
    seed: int = 0,
) -> dict[str, Rows]:
    """The rows of the splits train, val and test, in the columns `instruction`, `input` and `output`.

    Args:
        task: says what the columns are called in the files, and what an output may hold.
        source: a folder or address (https://, s3://, gs://) that holds train.jsonl, val.jsonl and test.jsonl,
            each as it is or compressed with gzip, also under the name train.jsonl.gz; `sample` for the
            task's embedded sample; None for the task's own source.
        rejected: the file to set bad rows aside in, counted in one line; None: a bad row is an error.
        sample_allowed: whether the sample stands in, with a line that says so, if `source` is None and the
            task's own source cannot be reached: no connection, no such host, or no answer in 5 s.
        counts: rows to draw from each split while it is read, as `pick` does: memory holds no others. None:
            all rows, in the order of the files.
        seed: of the draw.

    Raises:
        TutorialError: a file is missing, is not of JSON lines or cannot be read to its end, a split has no
            good row, or a row is bad and `rejected` is None; the file and the line are named.
    """
    aside = Rejected(rejected) if rejected else None

    def take(split: str, rows: Iterable[dict[str, str]]) -> Rows:
        return list(rows) if counts is None else pick(rows, counts.get(split), seed)

    folder = (source or task.source or "sample").rstrip("/")
    if folder == "sample":
        return {split: take(split, _sample(task, split)) for split in SPLITS}
    splits = {}
    for split in SPLITS:
        try:
            with _content(folder, f"{split}.jsonl") as (file, stream):
                splits[split] = take(split, parse(stream, file, task, aside))
        except UNREADABLE as error:
            unreachable = isinstance(error, UNREACHABLE) and not isinstance(
                error, requests.exceptions.SSLError
            )
            if source or splits or not (sample_allowed and task.sample and unreachable):
                place = urlsplit(folder)._replace(query="").geturl() if "://" in folder else folder
                raise TutorialError(
                    f"DATA: {place}/{split}.jsonl cannot be read ({_reason(error)})"
                ) from None
            print(f"{folder} cannot be reached within {TIMEOUT_S} s: using the embedded sample.")
            return {split: take(split, _sample(task, split)) for split in SPLITS}
    if aside and aside.count:
        total = aside.count + sum(getattr(part, "read", len(part)) for part in splits.values())
        print(f"SKIP_BAD_ROWS: {aside.count} of {total} rows are bad and were set aside in {aside.path}")
    return splits


def parse(
    stream: io.BufferedReader, file: str, task: Task, rejected: Rejected | None = None
) -> Iterator[dict[str, str]]:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted.

    Raises:
        TutorialError: the file is of another shape, has no good row, or one is bad (not UTF-8, not JSON,
            lacks a column, its output is none that the task allows) and there is no `rejected` to take it;
            names the file, and the line from 1.
    """
    found = shape(stream.peek())
    if found != "JSON lines":
        columns = [column for column in task.columns.model_dump().values() if column]
        example = json.dumps(dict.fromkeys(columns, "..."), ensure_ascii=False)
        raise TutorialError(f"{file}: this is {found}; JSON lines are needed, an object a line: {example}")
    row_of, good, first = row_model(task), 0, ""
    for number, line in enumerate(_lines(stream), start=1):
        if len(line) <= LONGEST_LINE and not line.strip():
            continue
        try:
            row = row_of(_decode(line))
        except ValueError as error:
            reason = one_line(error)[:300]
            bad = f"{file}, line {number}: {reason}"
            if rejected is None:
                raise TutorialError(f"{bad}; mend it, or set SKIP_BAD_ROWS=1") from None
            rejected.add(file, number, reason, line)
            first = first or bad
        else:
            good += 1
            yield row
    if not good and first:
        raise TutorialError(f"{file}: no row is good, all are in {rejected.path}; the first: {first}")
    if not good:
        raise TutorialError(f"{file}: the split is empty; set DATA to files that hold rows")


def shape(head: bytes) -> str:
    """What kind of file begins with these bytes: `JSON lines`, or one of `SHAPES`."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((name for start, name in SHAPES.items() if re.match(start, head)), "JSON lines")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each with its end; of one over `LONGEST_LINE` the beginning, one byte too long."""
    mark = b"\xef\xbb\xbf"
    while line := stream.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        yield line.removeprefix(mark)
        mark = b""


def _decode(line: bytes) -> object:
    """The JSON value of one line. Raises ValueError: what is wrong with it."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE // 2**20} MiB")
    cut = "" if line.endswith(b"\n") else "; the file ends here, it may be cut off"
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_object, parse_constant=NotANumber)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason}, byte {error.start + 1}){cut}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}: column {error.colno}){cut}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None


class NotANumber(str):
    """`NaN`, `Infinity` or `-Infinity`, which Python reads and JSON does not have."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"column {twice!r}: it is given twice")
    for name, value in pairs:
        if isinstance(value, NotANumber):
            raise ValueError(f"column {name!r}: {value} is not JSON")
    return found


def row_model(task: Task) -> Callable[[object], dict[str, str]]:
    """A function that checks a row of a file and returns it as `instruction`, `input` and `output`.

    It raises ValueError naming the column that is missing, not a text or empty, or whose answer the task
    refuses.
    """
    text = Annotated[str, AfterValidator(_not_blank)]
    answer = Annotated[text, AfterValidator(partial(_allowed, task.meaning))] if task.meaning else text
    names = {
        "instruction": task.columns.system,
        "input": task.columns.prompt,
        "output": task.columns.response,
    }
    fields = {
        key: (answer if key == "output" else text, Field(alias=name)) for key, name in names.items() if name
    }
    model = create_model("Row", __config__=ConfigDict(strict=True), **fields)

    def row_of(raw: object) -> dict[str, str]:
        try:
            return {"instruction": task.system_prompt} | model.model_validate(raw).model_dump()
        except ValidationError as error:
            found = error.errors()[0]
            column = f"column {found['loc'][0]!r}: " if found["loc"] else ""
            there = f"; there are {', '.join(map(repr, raw))}" if found["type"] == "missing" else ""
            reason = WORDS.get(found["type"], found["msg"].removeprefix("Value error, "))
            raise ValueError(f"{column}{reason}{there}") from None

    return row_of


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a text is needed, and this one is empty")
    return text


def _allowed(description: meaning.Description, text: str) -> str:
    meaning.check(meaning.parse(text), description)
    return text


def _sample(task: Task, split: str) -> Iterator[dict[str, str]]:
    made, row_of = task.sample_rows(), row_model(task)
    if made is None:
        raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
    for number, raw in enumerate(made.get(split, ()), start=1):
        try:
            yield row_of(raw)
        except ValueError as error:
            raise TutorialError(f"{task.sample}: {split}, row {number}: {one_line(error)[:300]}") from None


def pick(rows: Iterable[dict[str, str]], count: int | None, seed: int) -> Drawn:
    """`count` rows drawn at random (the first N would be whatever the file begins with), at most and for
    None all, in random order. It reads `rows` once and holds no more than it returns."""
    drawn, draw = Drawn(), random.Random(seed)
    for number, row in enumerate(rows):
        drawn.read = number + 1
        if count is None or number < count:
            drawn.append(row)
        elif (place := draw.randrange(number + 1)) < count:
            drawn[place] = row
    draw.shuffle(drawn)
    return drawn


def overlap(splits: dict[str, Rows]) -> str:
    """How many rows of one split stand in another, in one line: a score on rows that training saw says
    little. Also how many test rows have an answer, if not a question, that stands in train."""
    pairs = {split: {(row["input"], row["output"]) for row in rows} for split, rows in splits.items()}
    twice = (
        f"{len(pairs[one] & pairs[other])} in {one} and {other}" for one, other in combinations(pairs, 2)
    )
    known = {output for _, output in pairs["train"]}
    shared = sum(row["output"] in known for row in splits["test"])
    return (
        f"{shared} of {len(splits['test'])} test rows have an answer that stands in train too; "
        f"rows that stand in two splits: {', '.join(twice)}"
    )


def write(splits: dict[str, Rows], folder: Path, columns: dict[str, str] | None = None) -> list[str]:
    """Write a Parquet file a split, and the `dataset_info.json` from which LLaMA-Factory learns the columns.

    Parquet carries its types: LLaMA-Factory's reader of JSON takes answers such as `2024-01-31` for dates.

    Args:
        columns: LLaMA-Factory's names of the rows' keys. By default the instruction is the system turn and
            the input the user turn; LLaMA-Factory's own default would join both into the user turn.

    Returns:
        The names of the files.
    """
    columns = columns or {"system": "instruction", "prompt": "input", "response": "output"}
    info = {split: {"file_name": f"{split}.parquet", "columns": columns} for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / info[split]["file_name"])
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    return [*(entry["file_name"] for entry in info.values()), "dataset_info.json"]


@contextmanager
def _content(folder: str, name: str) -> Iterator[tuple[str, io.BufferedReader]]:
    """The name and the uncompressed content of a file, or of its twin with .gz if it is missing."""
    try:
        raw = _open(folder, name)
    except UNREACHABLE:
        raise
    except UNREADABLE as missing:
        name = f"{name}.gz"
        try:
            raw = _open(folder, name)
        except UNREADABLE:
            raise missing from None
    with raw, io.BufferedReader(raw, BUFFER) as stream:
        packed = stream.peek(2).startswith(b"\x1f\x8b")
        yield name, io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER) if packed else stream


def _open(folder: str, name: str) -> BinaryIO:
    """A file's bytes as a stream. Raises one of `UNREADABLE`."""
    if not folder.startswith(("http://", "https://")):
        return (Place.of(folder, setting="DATA") / name).open()
    parts = urlsplit(folder)
    if parts.fragment:
        raise TutorialError(f"DATA={folder}: an address cannot hold '#'")
    address = parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()
    # A server that compresses what it sends would hide a file that is cut off.
    response = requests.get(address, stream=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})
    response.raise_for_status()
    response.raw.auto_close = False  # the reader asks once more at the end
    return response.raw


def _reason(error: Exception) -> str:
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"{answer.status_code} {answer.reason}"
    if isinstance(error, UNREACHABLE):
        return f"not reached within {TIMEOUT_S} s: {type(error).__name__}"
    return one_line(error)[:300]
