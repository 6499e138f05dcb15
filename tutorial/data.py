"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import gzip
import io
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pyarrow.parquet
import requests
import urllib3
from requests.exceptions import ConnectTimeout, ProxyError, ReadTimeout

from tutorial import TutorialError, one_line
from tutorial.files import Place
from tutorial.tasks import SPLITS, Row, Task, decode, lines

TIMEOUT_S = 5
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREACHABLE = (requests.ConnectionError, ConnectTimeout, ReadTimeout, ProxyError)  # not its kind SSLError
UNREADABLE = (OSError, EOFError, zlib.error, pyarrow.ArrowInvalid, urllib3.exceptions.HTTPError)
SHAPES = {  # what a file that does not hold JSON lines begins with
    rb"PAR1": "a Parquet file",
    rb"PK\x03\x04": "a zip archive or an Excel file",
    rb"\xff\xfe|\xfe\xff|(?s:.?)\x00": "UTF-16 text or binary",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "compressed twice, or not with gzip",
    rb"<": "an HTML or XML page, such as a login page or a bucket's error",
    rb"\[": "a JSON array",
    rb"\{([^\n]*[\[{,:])?[ \t\r]*\n": "JSON with objects over several lines or commas between them",
    rb"[^{\n]*?[,;\t][^\n]*+\n?+\s*+([^{\s]|$)": "a table such as CSV",
    rb"version https://git-lfs": "a pointer of Git LFS",
}


class Drawn(list):
    read = 0  # rows that there were to draw from


def load(
    task: Task,
    source: str | None = None,
    rejected: Path | None = None,
    sample_allowed: bool = True,
    *,
    counts: dict[str, int | None] | None = None,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """The rows of the splits train, val and test, in the columns `instruction`, `input` and `output`.

    Args:
        source: a folder or address (https://, s3://, gs://) of train.jsonl, val.jsonl and test.jsonl, each as
            it is or gzipped, also as train.jsonl.gz; `sample`; None: the task's own source, or its sample.
        rejected: the file for bad rows (JSON lines: file, line, reason, text); None: a bad row is an error.
        sample_allowed: without `source`, use the sample, and say so, if the task's own cannot be reached.
        counts: rows of each split to draw while reading, as `pick` does; None: all, in the files' order.

    Raises:
        TutorialError: a file cannot be read to its end, is not of JSON lines or has no good row, or a row is
            bad and `rejected` is None; names the file, and the line.
    """
    if rejected:
        rejected.unlink(missing_ok=True)

    def take(rows: Iterable[Row], split: str) -> list[Row]:
        return list(rows) if counts is None else pick(rows, counts.get(split), seed)

    address, splits = source or task.source or "sample", {}
    if address == "sample":
        if task.sample is None:
            raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
        return {split: take(rows, split) for split, rows in task.sample_rows().items()}
    shown = re.sub(r"(?<=//)[^/]*@", "", address.rstrip("/"))  # without a password
    web = address.startswith(("http://", "https://"))
    if web and re.search("[?#]", address):
        raise TutorialError(f"DATA={re.split('[?#]', shown)[0]}: set a folder's address, without ? and #")
    place = address.rstrip("/") if web else Place.of(address, "DATA")
    for split in SPLITS:
        try:
            with _open(place, f"{split}.jsonl") as (stream, file):
                splits[split] = take(parse(stream, file, task, rejected), split)
        except UNREADABLE as error:
            unreachable = type(error) in UNREACHABLE and not splits
            if source or not (sample_allowed and task.sample and unreachable):
                file = f"{shown}/{split}.jsonl"
                raise TutorialError(f"DATA: {file} cannot be read ({one_line(error)[:300]})") from None
            print(f"{address} cannot be reached within {TIMEOUT_S} s: using the embedded sample.")
            return load(task, "sample", counts=counts, seed=seed)
    if rejected and rejected.exists():
        bad = rejected.read_bytes().count(b"\n")
        total = bad + sum(getattr(rows, "read", len(rows)) for rows in splits.values())
        print(f"SKIP_BAD_ROWS: {bad} of {total} rows are bad and were set aside in {rejected}")
    return splits


def parse(stream: io.BufferedReader, file: str, task: Task, rejected: Path | None = None) -> Iterator[Row]:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted. TutorialError if it
    has another shape or no good row, or if a row, named by its line from 1, is bad and `rejected` is None."""
    if stream.peek().startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    found = shape(stream.peek().lstrip())
    if found != "JSON lines":
        raise TutorialError(f"{file}: this is {found}; DATA takes JSON lines, one object a line, in UTF-8")
    read, good, first = task.row_reader(), 0, ""
    for number, line in lines(stream):
        try:
            yield read(decode(line))
            good += 1
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
    if not good:
        bad = f"no row is good, all are in {rejected}; the first: {first}"
        raise TutorialError(f"{file}: {bad if first else 'the split is empty; set DATA to files with rows'}")


def shape(head: bytes) -> str:
    """What kind of file begins with these bytes: `JSON lines`, or one of `SHAPES`."""
    return next((name for start, name in SHAPES.items() if re.match(start, head)), "JSON lines")


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


def overlap(splits: dict[str, list[Row]]) -> str:
    """How many rows of one split are in another, in one line: a score on rows that training saw says little.
    Also how many test rows have an answer, if not a question, that is in train."""
    pairs = {split: {(row["input"], row["output"]) for row in rows} for split, rows in splits.items()}
    twice = (f"{len(pairs[a] & pairs[b])} in {a} and {b}" for a, b in combinations(pairs, 2))
    known = {output for _, output in pairs["train"]}
    shared = sum(row["output"] in known for row in splits["test"])
    return (
        f"{shared} of {len(splits['test'])} test rows have an answer that stands in train too; "
        f"rows that stand in two splits: {', '.join(twice)}"
    )


def write(splits: dict[str, list[Row]], folder: Path, columns: dict[str, str] | None = None) -> list[str]:
    """Write a Parquet file a split and LLaMA-Factory's key to them, `dataset_info.json`; return the names.

    Parquet keeps types; of JSON lines LLaMA-Factory's reader guesses them: `2024-01-31` becomes a date. By
    default the instruction is the system turn; LLaMA-Factory's own default joins it into the user turn.
    """
    columns = columns or {"system": "instruction", "prompt": "input", "response": "output"}
    info = {split: {"file_name": f"{split}.parquet", "columns": columns} for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    lines = ",\n".join(f"  {json.dumps(split)}: {json.dumps(entry)}" for split, entry in info.items())
    (folder / "dataset_info.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return [*(f"{split}.parquet" for split in splits), "dataset_info.json"]


@contextmanager
def _open(place: Place | str, name: str) -> Iterator[tuple[io.BufferedReader, str]]:
    """The uncompressed content and the name of a file, or of its twin with .gz if it is missing."""
    try:
        raw = _raw(place, name)
    except UNREADABLE as missing:
        if type(missing) in UNREACHABLE:
            raise
        try:
            raw, name = _raw(place, f"{name}.gz"), f"{name}.gz"
        except UNREADABLE:
            raise missing from None
    with raw, io.BufferedReader(raw, BUFFER) as stream:
        packed = stream.peek(2).startswith(b"\x1f\x8b")
        yield io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER) if packed else stream, name


def _raw(place: Place | str, name: str) -> io.IOBase:
    if isinstance(place, Place):
        return (place / name).open()
    headers = {"Accept-Encoding": "identity"}  # a server that compresses would hide a file that is cut off
    response = requests.get(f"{place}/{name}", stream=True, timeout=TIMEOUT_S, headers=headers)
    if not response.ok:
        raise OSError(f"{response.status_code} {response.reason}")
    response.raw.auto_close = False  # the reader asks once more at the end
    return response.raw
