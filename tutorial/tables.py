"""A file of rows as people have it: JSON lines, a JSON array, CSV, TSV or Parquet, told by its content."""

import csv
import io
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet

from tutorial import TutorialError, one_line

LONGEST_LINE = 64 * 2**20  # bytes that are held of a file without line ends
TOO_LONG = f"longer than {LONGEST_LINE // 2**20} MiB"
DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with ;", "|": "CSV with |"}
# No JSON object in the first line or in the second; if there is no second, a delimiter in the first.
TABLE = rb'[^{\s][^\n]*+\n\s*+([^{\s]|\{[^"}\s])|[^{\n]*?[,;\t|][^\n]*+\s*+$'
TAKEN = "JSON lines, a JSON array, CSV, TSV or Parquet, as it is or compressed with gzip"
REFUSED = {  # what a file that holds none of them begins with
    rb"PK\x03\x04": "a zip archive or an Excel file",
    rb"\xff\xfe|\xfe\xff|(?s:.?)\x00": "UTF-16 text or binary",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "compressed twice, or not with gzip",
    rb"<": "an HTML or XML page, such as a login page or a bucket's error",
    rb"\{([^\n]*[\[{,:])?[ \t\r]*\n": "JSON with objects over several lines or commas between them",
    rb"version https://git-lfs": "a pointer of Git LFS",
}


class Raw(NamedTuple):
    """A row as it is in a file: `line` or `row` with its number from 1; its value, or a ValueError that says
    why there is none; its text, or None if `value` is all there is."""

    place: tuple[str, int]
    value: object
    text: bytes | None = None

    def shown(self) -> str:
        """The whole row as a text, whatever is wrong with it."""
        if self.text is not None:
            return self.text.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
        return json.dumps(self.value, default=_plain)


def read(stream: io.BufferedReader, file: str) -> tuple[str, Iterator[Raw]]:
    """What kind of file an uncompressed stream is, and its rows, without blank ones. TutorialError if it is
    of another kind, or so broken that its rows cannot be told apart; names `file`."""
    if stream.peek(3).startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    head = stream.peek()
    start = head.lstrip()
    if head.startswith(b"PAR1"):
        return "Parquet", _parquet(stream, file)
    if refused := next((name for begin, name in REFUSED.items() if re.match(begin, start)), None):
        raise TutorialError(f"{file}: this is {refused}; DATA takes {TAKEN}, in UTF-8")
    if start.startswith(b"["):
        return "JSON array", _json_array(stream, file)
    if re.match(TABLE, start):
        return _table(stream, head, file)
    return "JSON lines", _json_lines(stream)


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of each line; of one longer than `LONGEST_LINE` the first bytes."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number, rest = number + 1, line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        yield number, line


def _json_lines(stream: BinaryIO) -> Iterator[Raw]:
    for number, line in lines(stream):
        if len(line) > LONGEST_LINE or line.strip():
            yield Raw(("line", number), _value(line), line)


def _value(line: bytes) -> object:
    """The JSON value of one line, or a ValueError: what is wrong with it."""
    if len(line) > LONGEST_LINE:
        return ValueError(TOO_LONG)
    cut = "" if line.endswith(b"\n") else "; the file ends here, it may be cut off"
    try:
        return _json(line)
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 ({error.reason}, byte {error.start + 1}){cut}")
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON ({error.msg}: column {error.colno}){cut}")
    except RecursionError:
        return ValueError("not JSON that can be read (nested too deeply)")


class Flaw(ValueError):
    """In place of a JSON object that programs read differently, and of those around it."""

    def __init__(self, reason: str, pairs: list[tuple[str, object]]):
        super().__init__(reason)
        self.pairs = pairs


def _plain(value: object) -> object:
    return value.pairs if isinstance(value, Flaw) else str(value)


def _json(content: bytes) -> Any:
    """The value, with decimal numbers as they are written."""
    return json.loads(content.decode(), object_pairs_hook=_object, parse_float=Decimal)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object] | Flaw:
    found = {}
    for column, value in pairs:
        if column in found:
            return Flaw(f"column {column!r}: it is given twice", pairs)
        if isinstance(value, float) and not math.isfinite(value):
            return Flaw(f"column {column!r}: {value} is not JSON", pairs)
        flaws = value if isinstance(value, list) else [value]
        if flaw := next((each for each in flaws if isinstance(each, Flaw)), None):
            return Flaw(str(flaw), pairs)
        found[column] = value
    return found


def _json_array(stream: BinaryIO, file: str) -> Iterator[Raw]:
    content = stream.read()
    try:
        rows = _json(content)
    except (ValueError, RecursionError) as error:
        raise TutorialError(f"{file}: not a JSON array ({one_line(error)})") from None
    for number, value in enumerate(rows, start=1):
        yield Raw(("row", number), value)


def _table(stream: BinaryIO, head: bytes, file: str) -> tuple[str, Iterator[Raw]]:
    """The delimiter is the one that makes most columns of the first line."""
    first = head.decode("utf-8", errors="replace").lstrip().split("\n")[:1]
    delimiter = max(DELIMITERS, key=lambda each: len(next(csv.reader(first, delimiter=each))))
    return DELIMITERS[delimiter], _table_rows(stream, delimiter, file)


def _table_rows(stream: BinaryIO, delimiter: str, file: str) -> Iterator[Raw]:
    taken, start, header = [], 1, None  # the lines of a row, and the number of the first

    def texts() -> Iterator[str]:
        for _, line in lines(stream):
            taken.append(line)
            yield line.decode("utf-8", errors="surrogateescape")

    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        try:
            fields, problem = next(reader, None), ""
        except csv.Error as error:  # the reader goes on with the next line
            fields, problem = [], f"not {DELIMITERS[delimiter]} ({one_line(error)})"
        if fields is None:
            return
        content, number, start = b"".join(taken), start, start + len(taken)
        taken.clear()
        if not problem and len(content) > LONGEST_LINE:
            problem = TOO_LONG
        if header is None and (problem or fields):
            header, twice = fields, [each for each in fields if each.strip() and fields.count(each) > 1]
            if problem or twice:
                problem = problem or f"the column {twice[0]!r} is there twice"
                raise TutorialError(f"{file}, line {number}: {problem}")
        elif problem or any(fields):
            problem = problem or _wrong(header, fields)
            value = ValueError(problem) if problem else dict(zip(header, fields, strict=True))
            yield Raw(("line", number), value, content)


def _wrong(header: list[str], fields: list[str]) -> str:
    """What is wrong with a table's row, or ""."""
    if fields == header:
        return "this is the header again"
    if len(fields) != len(header):
        return f"it has {len(fields)} fields, and the header {len(header)}"
    escaped = any("\udc80" <= letter <= "\udcff" for each in fields for letter in each)
    return "not UTF-8; save the file as UTF-8" if escaped else ""


def _parquet(stream: BinaryIO, file: str) -> Iterator[Raw]:
    with tempfile.TemporaryFile() as whole:  # it is read from its end
        shutil.copyfileobj(stream, whole)
        table, number = pyarrow.parquet.ParquetFile(whole), 0
        names = table.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise TutorialError(f"{file}: the column {twice!r} is there twice")
        for batch in table.iter_batches(batch_size=1000):
            try:
                for value in batch.to_pylist():
                    number += 1
                    yield Raw(("row", number), value)
            except UnicodeDecodeError:
                raise TutorialError(f"{file}, after row {number}: text that is not UTF-8") from None
