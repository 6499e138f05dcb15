"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import gzip
import io
import json
import random
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

import pyarrow
import requests
import urllib3

from tutorial import TutorialError, meaning, one_line, storage
from tutorial.task import Task

SPLITS = ("train", "val", "test")
TIMEOUT_S = 5
LONGEST_LINE = 64 * 2**20  # bytes that are held of a file without line ends
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREADABLE = (OSError, EOFError, zlib.error, pyarrow.ArrowInvalid, urllib3.exceptions.HTTPError)

Rows = Sequence[dict[str, str]]


class SpooledRows(Rows):
    """Rows in a temporary file without a name: there may be more than fit in memory, which holds where each
    begins. `pick` takes those that are used."""

    def __init__(self, rows: Iterable[dict[str, str]]):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed, and so deleted, with this object
        self._starts = array("Q")
        end = 0
        for row in rows:
            self._starts.append(end)
            end += self._file.write(json.dumps(row).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        return json.loads(self._file.readline())


class Rejected:
    """A file of the bad rows that were set aside: JSON lines with `file`, `line`, `reason` and `text`, the
    line as it stood there. Without bad rows there is no file.

    Attributes:
        path: where it is; one of an earlier run is deleted.
        count: the rows in it.
    """

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        path.unlink(missing_ok=True)

    def add(self, file: str, number: int, reason: str, line: bytes) -> None:
        text = line.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            found = {"file": file, "line": number, "reason": reason, "text": text}
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
        self.count += 1


def load(task: Task, source: str | None = None, rejected: Path | None = None) -> dict[str, Rows]:
    """All rows of the splits train, val and test, in the columns `instruction`, `input` and `output`.

    Args:
        task: says what the columns are called in the files, and what an output may hold.
        source: a folder or URI (https://, s3://, gs://) that holds train.jsonl, val.jsonl and test.jsonl,
            each as it is or compressed with gzip, also under the name train.jsonl.gz; `sample` for the
            task's embedded sample; None for the task's own source, or its sample, with a word about it
            where the source cannot be reached within 5 s.
        rejected: the file to set bad rows aside in, counted in one line; None: a bad row is an error.

    Raises:
        TutorialError: a file is missing or cannot be read to its end, a split has no good row, or a row is
            bad and `rejected` is None; the file and the line are named.
    """
    aside = Rejected(rejected) if rejected else None
    made = task.sample_module()
    if source == "sample" or (source is None and task.source is None):
        if made is None:
            raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
        return _sample(task)
    folder = (source or task.source).rstrip("/")
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = _read(folder, f"{split}.jsonl", task, aside)
        except UNREADABLE as error:
            if source or made is None or not isinstance(error, requests.RequestException):
                raise TutorialError(
                    f"DATA: {folder}/{split}.jsonl cannot be read ({one_line(error)})"
                ) from None
            answer = _answer(error)
            reason = f"answers {answer}" if answer else f"cannot be reached within {TIMEOUT_S} s"
            print(f"{task.source} {reason}: using the embedded sample.")
            return _sample(task)
    if aside and aside.count:
        total = aside.count + sum(map(len, splits.values()))
        print(f"SKIP_BAD_ROWS: {aside.count} of {total} rows are bad and were set aside in {aside.path}")
    return splits


def parse(
    stream: BinaryIO, file: str, task: Task, rejected: Rejected | None = None
) -> Iterator[dict[str, str]]:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted.

    Raises:
        TutorialError: the file has no good row, or one is bad (not UTF-8, not JSON, lacks a column, its
            output is none that the task allows) and there is no `rejected` to take it; names the file, and
            the line from 1.
    """
    good, first = 0, ""
    for number, line in enumerate(_lines(stream), start=1):
        if len(line) <= LONGEST_LINE and not line.strip():
            continue
        try:
            row = _parse_line(line, task)
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


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each with its end; of one over `LONGEST_LINE` the beginning, one byte too long."""
    mark = b"\xef\xbb\xbf"
    while line := stream.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        yield line.removeprefix(mark)
        mark = b""


def _parse_line(line: bytes, task: Task) -> dict[str, str]:
    """The row of one line. Raises ValueError: what is wrong with it."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE // 2**20} MiB")
    cut = "" if line.endswith(b"\n") else "; the file ends here, it may be cut off"
    try:
        raw = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason}, byte {error.start + 1}){cut}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}: column {error.colno}){cut}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    return _row(raw, task)


def _row(raw: dict[str, str], task: Task) -> dict[str, str]:
    """A row of a file as the notebook knows it: the system turn, the user turn and the answer.

    Raises:
        ValueError: naming the column that is missing, no text or empty, or whose answer the task refuses.
    """
    if not isinstance(raw, dict):
        raise ValueError("not an object with columns")
    columns = task.columns
    for column in filter(None, (columns.system, columns.prompt, columns.response)):
        text = raw.get(column)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"column {column!r}: a text is needed, not {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"column {column!r}: half of a surrogate pair, which is no text") from None
    if task.meaning:
        try:
            meaning.check(meaning.parse(raw[columns.response]), task.meaning)
        except ValueError as error:
            raise ValueError(f"column {columns.response!r}: {error}") from None
    return {
        "instruction": raw[columns.system] if columns.system else task.system_prompt,
        "input": raw[columns.prompt],
        "output": raw[columns.response],
    }


def _sample(task: Task) -> dict[str, Rows]:
    return {s: [_row(raw, task) for raw in part] for s, part in task.sample_module().rows().items()}


def pick(rows: Rows, count: int | None, seed: int) -> list[dict[str, str]]:
    """`count` rows drawn at random (the first N would be whatever the file begins with), at most and for
    None all, in random order."""
    drawn = random.Random(seed).sample(range(len(rows)), min(count or len(rows), len(rows)))
    return [rows[number] for number in drawn]


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


def write(splits: dict[str, Rows], folder: Path) -> None:
    """The rows as JSON lines, with the `dataset_info.json` from which LLaMA-Factory learns the columns.

    The instruction is the system turn and the input the user turn: `messages` below sends the same at
    inference. LLaMA-Factory's default would join both into the user turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"system": "instruction", "prompt": "input", "response": "output"}
    info = {}
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        info[split] = {"file_name": f"{split}.jsonl", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


def messages(row: dict[str, str], examples: Rows = ()) -> list[dict[str, str]]:
    """The chat turns that ask for a row's answer; before them, the questions and answers of examples."""
    turns = [{"role": "system", "content": row["instruction"]}]
    for example in examples:
        turns.append({"role": "user", "content": example["input"]})
        turns.append({"role": "assistant", "content": example["output"]})
    return [*turns, {"role": "user", "content": row["input"]}]


def _read(folder: str, name: str, task: Task, rejected: Rejected | None) -> SpooledRows:
    """The rows of a file, or of its twin with .gz where it is missing. Raises one of `UNREADABLE`."""
    missing = None
    for file in (name, f"{name}.gz"):
        try:
            with _open(f"{folder}/{file}") as stream:
                return SpooledRows(parse(stream, file, task, rejected))
        except UNREADABLE as error:
            # S3 answers 403 for a file that is not there, to those who may not list the bucket.
            if not (isinstance(error, FileNotFoundError) or _answer(error) in (403, 404)):
                raise
            missing = missing or error
    raise missing


def _answer(error: Exception) -> int | None:
    """The status code that a web server answered with, None if it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _open(uri: str) -> Iterator[BinaryIO]:
    """A file's content, uncompressed, as a stream that is read piece by piece."""
    with _open_raw(uri) as raw, io.BufferedReader(raw, BUFFER) as stream:
        yield gzip.GzipFile(fileobj=stream) if stream.peek(2)[:2] == b"\x1f\x8b" else stream


@contextmanager
def _open_raw(uri: str) -> Iterator[BinaryIO]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    server, files = storage.S3Server.running, None
    if uri.startswith("s3://") and server and bucket != storage.BUCKET:
        # The run's own S3 server stands in for AWS in this process, and these rows are not on it. A public
        # bucket is read over https.
        files = server.outside()
        uri = uri if files else f"https://{bucket}.s3.amazonaws.com/{key}"
    if uri.startswith(("http://", "https://")):
        # A server that compresses what it sends would hide a file that is cut off.
        headers = {"Accept-Encoding": "identity"}
        with requests.get(uri, stream=True, timeout=TIMEOUT_S, headers=headers) as response:
            response.raise_for_status()
            response.raw.auto_close = False  # the reader asks once more at the end
            yield response.raw
    elif "://" not in uri:
        with Path(uri).expanduser().open("rb", buffering=0) as file:
            yield file
    else:
        files, path = (files, f"{bucket}/{key}") if files else storage.file_system(uri)
        with files.open_input_stream(path) as stream:
            yield stream
