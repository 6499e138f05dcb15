"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import gzip
import io
import json
import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Annotated, BinaryIO

import pyarrow.parquet
import requests
import urllib3
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from tutorial import TutorialError, meaning, one_line
from tutorial.files import Place
from tutorial.tasks import SPLITS, Task

TIMEOUT_S = 5
LONGEST_LINE = 64 * 2**20  # bytes that are held of a file without line ends
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREADABLE = (OSError, EOFError, zlib.error, pyarrow.ArrowInvalid, urllib3.exceptions.HTTPError)
MARK = b"\xef\xbb\xbf"  # byte order mark
SHAPES = {  # what a file that does not hold JSON lines begins with
    rb"PAR1": "a Parquet file",
    rb"PK\x03\x04": "a zip archive or an Excel file",
    rb"\xff\xfe|\xfe\xff|(?s:.?)\x00": "UTF-16 text or binary",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "compressed twice, or not with gzip",
    rb"<": "an HTML or XML page, such as a login page or a bucket's error",
    rb"\[": "a JSON array",
    rb"\{([^\n]*[\[{,:])?[ \t\r]*\n": "JSON with objects over several lines or commas between them",
    rb"[^{\n]*?[,;\t][^\n]*+\n?+\s*+([^{\s]|$)": "a table such as CSV",
    rb"[^{][^\n]*+\n?+\s*+([^{\s]|$)": "not JSON",  # in two lines: `parse` refuses a single one as a bad row
}
WORDS = {  # pydantic's type of an error, in words
    "missing": "it is missing",
    "string_type": "a text is needed",
    "string_pattern_mismatch": "a text is needed, and this one is empty",
    "string_unicode": "half of a surrogate pair, which is not text",
    "model_type": "an object with columns is needed",
}
Rows = Sequence[dict[str, str]]


class Drawn(list):
    """Rows drawn at random. `read` is how many there were to draw from."""

    read = 0


def load(
    task: Task,
    source: str | None = None,
    rejected: Path | None = None,
    sample_allowed: bool = True,
    *,
    counts: dict[str, int | None] | None = None,
    seed: int = 0,
) -> dict[str, Rows]:
    """The rows of the splits train, val and test, in the columns `instruction`, `input` and `output`.

    Args:
        source: a folder or address (https://, s3://, gs://) that holds train.jsonl, val.jsonl and test.jsonl,
            each as it is or compressed with gzip, also under the name train.jsonl.gz; `sample` for the
            task's embedded sample; None for the task's own source.
        rejected: the file to set bad rows aside in (JSON lines: file, line, reason, text), counted in one
            printed line; None: a bad row is an error.
        sample_allowed: without `source`, use the sample, and say so, if the task's own cannot be reached.
        counts: rows of each split to draw while it is read, as `pick` does with `seed`: memory holds no
            others. None: all rows, in the order of the files.

    Raises:
        TutorialError: a file is missing, does not hold JSON lines or cannot be read to its end, a split has
            no good row, or a row is bad and `rejected` is None; the file and the line are named.
    """
    if rejected:
        rejected.unlink(missing_ok=True)

    def take(rows: Iterable[dict[str, str]], split: str) -> Rows:
        return list(rows) if counts is None else pick(rows, counts.get(split), seed)

    address, splits = source or task.source or "sample", {}
    if address == "sample":
        return {split: take(rows, split) for split, rows in _sample(task).items()}
    place = address if address.startswith(("http://", "https://")) else Place.of(address, "DATA")
    for split in SPLITS:
        try:
            with _open(place, f"{split}.jsonl") as (stream, file):
                splits[split] = take(parse(stream, file, task, rejected), split)
        except UNREADABLE as error:
            if source or splits or not (sample_allowed and task.sample and _unreachable(error)):
                # An address may hold keys: before '@', and behind '?'.
                shown = place if isinstance(place, Place) else re.sub(r"//.*@|\?.*|/$", "", address)
                raise TutorialError(
                    f"DATA: {shown}/{split}.jsonl cannot be read ({_reason(error)})"
                ) from None
            print(f"{address} cannot be reached within {TIMEOUT_S} s: using the embedded sample.")
            return load(task, "sample", counts=counts, seed=seed)
    if rejected and rejected.exists():
        bad = len(rejected.read_bytes().splitlines())
        total = bad + sum(getattr(rows, "read", len(rows)) for rows in splits.values())
        print(f"SKIP_BAD_ROWS: {bad} of {total} rows are bad and were set aside in {rejected}")
    return splits


def parse(
    stream: io.BufferedReader, file: str, task: Task, rejected: Path | None = None
) -> Iterator[dict[str, str]]:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted.

    Raises:
        TutorialError: the file has another shape, has no good row, or one is bad (not UTF-8, not JSON, lacks
            a column, its output is none that the task allows) and there is no `rejected` to take it; names
            the file, and the line from 1.
    """
    found = shape(stream.peek())
    if found != "JSON lines":
        columns = task.columns.model_dump(exclude_none=True).values()
        example = json.dumps(dict.fromkeys(columns, "..."), ensure_ascii=False)
        raise TutorialError(f"{file}: this is {found}; DATA takes JSON lines, one object a line: {example}")
    row_of, number, good, first = row_reader(task), 0, 0, ""
    while line := stream.readline(LONGEST_LINE + 1):
        number, rest = number + 1, line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        line = line if number > 1 else line.removeprefix(MARK)
        if len(line) <= LONGEST_LINE and not line.strip():
            continue
        try:
            row = row_of(_decode(line))
        except ValueError as error:
            reason = one_line(error)[:300]
            first = first or f"{file}, line {number}: {reason}"
            if rejected is None:
                raise TutorialError(f"{first}; mend it, or set SKIP_BAD_ROWS=1") from None
            text = line.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
            bad = {"file": file, "line": number, "reason": reason, "text": text}
            rejected.parent.mkdir(parents=True, exist_ok=True)
            with rejected.open("a", encoding="utf-8") as out:
                out.write(json.dumps(bad, ensure_ascii=False) + "\n")
        else:
            good += 1
            yield row
    if not good and first:
        raise TutorialError(f"{file}: no row is good, all are in {rejected}; the first: {first}")
    if not good:
        raise TutorialError(f"{file}: the split is empty; set DATA to files that hold rows")


def shape(head: bytes) -> str:
    """What kind of file begins with these bytes: `JSON lines`, or one of `SHAPES`."""
    head = head.removeprefix(MARK).lstrip()
    return next((name for start, name in SHAPES.items() if re.match(start, head)), "JSON lines")


def _decode(line: bytes) -> object:
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
    """A JSON object, refused if Python would read it and drop or invent something."""
    found = {}
    for column, value in pairs:
        if column in found:
            raise ValueError(f"column {column!r}: it is given twice")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"column {column!r}: {value} is not JSON")
        found[column] = value
    return found


def row_reader(task: Task) -> Callable[[object], dict[str, str]]:
    """A function from a row as it is in a file to one of `instruction`, `input` and `output`. It raises
    ValueError, naming the column, if one is missing, not a text or empty, or the task refuses the answer."""

    def allowed(answer: str) -> str:
        if task.meaning:
            meaning.check(meaning.parse(answer), task.meaning)
        return answer

    text, columns = Annotated[str, Field(pattern=r"\S")], task.columns
    fields = {
        "instruction": (text, Field(alias=columns.system)),
        "input": (text, Field(alias=columns.prompt)),
        "output": (Annotated[text, AfterValidator(allowed)], Field(alias=columns.response)),
    }
    if not columns.system:
        del fields["instruction"]
    model = create_model("Row", __config__=ConfigDict(strict=True), **fields)

    def read(raw: object) -> dict[str, str]:
        try:
            return {"instruction": task.system_prompt} | model.model_validate(raw).model_dump()
        except ValidationError as error:
            found = error.errors()[0]
            column = f"column {found['loc'][0]!r}: " if found["loc"] else ""
            there = f"; there are {', '.join(map(repr, raw))}" if found["type"] == "missing" else ""
            words = WORDS.get(found["type"], found["msg"].removeprefix("Value error, "))
            raise ValueError(f"{column}{words}{there}") from None

    return read


def _sample(task: Task) -> dict[str, list[dict[str, str]]]:
    made, row_of, found = task.sample_rows(), row_reader(task), {split: [] for split in SPLITS}
    if made is None:
        raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
    for split, rows in found.items():
        for number, raw in enumerate(made[split], start=1):
            try:
                rows.append(row_of(raw))
            except ValueError as error:
                raise TutorialError(
                    f"{task.sample}: {split}, row {number}: {one_line(error)[:300]}"
                ) from None
    return found


def pick(rows: Iterable[dict[str, str]], count: int | None, seed: int) -> Drawn:
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


def overlap(splits: dict[str, Rows]) -> str:
    """How many rows of one split stand in another, in one line: a score on rows that training saw says
    little. Also how many test rows have an answer, if not a question, that stands in train."""
    pairs = {split: {(row["input"], row["output"]) for row in rows} for split, rows in splits.items()}
    twice = (f"{len(pairs[a] & pairs[b])} in {a} and {b}" for a, b in combinations(pairs, 2))
    known = {output for _, output in pairs["train"]}
    shared = sum(row["output"] in known for row in splits["test"])
    return (
        f"{shared} of {len(splits['test'])} test rows have an answer that stands in train too; "
        f"rows that stand in two splits: {', '.join(twice)}"
    )


def write(splits: dict[str, Rows], folder: Path, columns: dict[str, str] | None = None) -> list[str]:
    """Write a Parquet file a split, and the `dataset_info.json` from which LLaMA-Factory learns the columns.

    Parquet keeps the columns' types; from JSON lines LLaMA-Factory's reader guesses them, and takes answers
    such as `2024-01-31` for dates. By default the instruction is the system turn and the input the user
    turn: LLaMA-Factory's own default would join both into the user turn. Returns the names of the files.
    """
    columns = columns or {"system": "instruction", "prompt": "input", "response": "output"}
    info = {split: {"file_name": f"{split}.parquet", "columns": columns} for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    return [*(f"{split}.parquet" for split in splits), "dataset_info.json"]


@contextmanager
def _open(place: Place | str, name: str) -> Iterator[tuple[io.BufferedReader, str]]:
    """The uncompressed content and the name of a file, or of its twin with .gz if it is missing."""
    try:
        raw = _raw(place, name)
    except UNREADABLE as missing:
        if _unreachable(missing):
            raise
        name = f"{name}.gz"
        try:
            raw = _raw(place, name)
        except UNREADABLE:
            raise missing from None
    with raw, io.BufferedReader(raw, BUFFER) as stream:
        packed = stream.peek(2).startswith(b"\x1f\x8b")
        yield io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER) if packed else stream, name


def _raw(place: Place | str, name: str) -> BinaryIO:
    if isinstance(place, Place):
        return (place / name).open()
    address, mark, query = place.partition("?")
    if "#" in place:
        raise TutorialError(f"DATA={place.partition('#')[0]}: an address cannot hold '#'")
    response = requests.get(
        f"{address.rstrip('/')}/{name}{mark}{query}",
        stream=True,
        timeout=TIMEOUT_S,
        # A server that compresses what it sends would hide a file that is cut off.
        headers={"Accept-Encoding": "identity"},
    )
    response.raise_for_status()
    response.raw.auto_close = False  # the reader asks once more at the end
    return response.raw


def _unreachable(error: Exception) -> bool:
    """Whether nothing answered; a certificate that is refused is an answer."""
    nothing = (requests.ConnectionError, requests.Timeout)
    return isinstance(error, nothing) and not isinstance(error, requests.exceptions.SSLError)


def _reason(error: Exception) -> str:
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"{answer.status_code} {answer.reason}"
    return type(error).__name__ if isinstance(error, requests.RequestException) else one_line(error)[:300]
