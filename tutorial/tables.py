"""A file of rows as people have it: JSON lines, a JSON array, CSV, TSV or Parquet, told by its content."""

import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet

from tutorial import TutorialError, one_line

HEAD = 20  # rows, at least, whose columns say how a file is laid out
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
    """A row as it is in a file: `line` or `row` and its number from 1; its value, or a ValueError that says
    what is wrong; and as it is written, the bytes of a line or what JSON can show."""

    place: tuple[str, int]
    value: object
    written: object

    def shown(self) -> str:
        """The whole row as a text, whatever is wrong with it."""
        if isinstance(self.written, bytes):
            return self.written.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
        return json.dumps(self.written, default=str)


class Pairs(list):
    """A JSON object as it is written: columns, one of them perhaps twice, and their values."""


def read(stream: io.BufferedReader, file: str) -> tuple[str, list[str], Iterator[Raw]]:
    """What kind of file an uncompressed stream is, the columns of its first rows, and all its rows, without
    blank ones. TutorialError if it is of another kind, or so broken that its rows cannot be told apart."""
    kind, rows = told_apart(stream, file)
    head, names = [], {}
    for row in rows:  # until one has columns; a row may lack some of them
        head.append(row)
        names |= dict.fromkeys(row.value if isinstance(row.value, dict) else ())
        if names and len(head) >= HEAD:
            break
    return kind, list(names), chain(head, rows)


def told_apart(stream: io.BufferedReader, file: str) -> tuple[str, Iterator[Raw]]:
    if stream.peek(3).startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    start = stream.peek().lstrip()
    if start.startswith(b"PAR1"):
        return "Parquet", _parquet(stream, file)
    if refused := next((name for begin, name in REFUSED.items() if re.match(begin, start)), None):
        raise TutorialError(f"{file}: this is {refused}; DATA takes {TAKEN}, in UTF-8")
    if start.startswith(b"["):
        return "JSON array", _json_array(stream, file)
    if re.match(TABLE, start):
        first = [start.decode("utf-8", errors="replace").split("\n")[0]]
        delimiter = max(DELIMITERS, key=lambda each: len(next(csv.reader(first, delimiter=each))))
        return DELIMITERS[delimiter], _table(stream, delimiter, file)
    return "JSON lines", _json_lines(stream)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Each line; of one longer than `LONGEST_LINE` the first bytes."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE + 1)


def _json_lines(stream: BinaryIO) -> Iterator[Raw]:
    for number, line in enumerate(_lines(stream), start=1):
        whole = len(line) <= LONGEST_LINE
        if whole and not line.strip():
            continue
        cut = "" if line.endswith(b"\n") else "; the file ends here, it may be cut off"
        try:
            value = _checked(_json(line)) if whole else ValueError(TOO_LONG)
        except UnicodeDecodeError as error:
            value = ValueError(f"not UTF-8 ({error.reason}, byte {error.start + 1}); save the file as UTF-8")
        except json.JSONDecodeError as error:
            value = ValueError(f"not JSON ({error.msg}: column {error.colno}){cut}")
        except RecursionError:
            value = ValueError("not JSON that can be read (nested too deeply)")
        except ValueError as error:
            value = error
        yield Raw(("line", number), value, line)


def _json_array(stream: BinaryIO, file: str) -> Iterator[Raw]:
    try:
        rows = _json(stream.read())
    except (ValueError, RecursionError) as error:
        raise TutorialError(f"{file}: not a JSON array ({one_line(error)})") from None
    for number, pairs in enumerate(rows, start=1):
        try:
            value = written = _checked(pairs)
        except (ValueError, RecursionError) as error:
            value, written = ValueError(one_line(error)), pairs
        yield Raw(("row", number), value, written)


def _json(content: bytes) -> Any:
    """The value, with objects as `Pairs` and decimal numbers as they are written."""
    return json.loads(content.decode(), object_pairs_hook=Pairs, parse_float=Decimal)


def _checked(value: Any) -> Any:
    """The value with objects as dicts. ValueError if programs would read one of them differently."""
    if not isinstance(value, Pairs):
        return [_checked(each) for each in value] if isinstance(value, list) else value
    found = {}
    for column, inner in value:
        if column in found:
            raise ValueError(f"column {column!r}: it is given twice")
        if isinstance(inner, float):  # as NaN and Infinity: numbers are `Decimal`
            raise ValueError(f"column {column!r}: {inner} is not JSON")
        found[column] = _checked(inner)
    return found


def _table(stream: BinaryIO, delimiter: str, file: str) -> Iterator[Raw]:
    taken, header = [], None  # the lines of a row, and the names of the columns

    def texts() -> Iterator[str]:
        for line in _lines(stream):
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
        content, number = b"".join(taken), reader.line_num - len(taken) + 1
        taken.clear()
        if not (problem or any(fields)) or fields == ["sep=", ""]:  # blank, or Excel's line about itself
            continue
        problem = problem or (TOO_LONG if len(content) > LONGEST_LINE else _wrong(header, fields))
        if header is None and problem:
            raise TutorialError(f"{file}, line {number}: {problem}")
        if header is None:
            header = fields
            continue
        value = ValueError(problem) if problem else dict(zip(header, fields, strict=True))
        yield Raw(("line", number), value, content)


def _wrong(header: list[str] | None, fields: list[str]) -> str:
    """What is wrong with the row of a table, or with its header if there is none yet; or ""."""
    if any("\udc80" <= letter <= "\udcff" for each in fields for letter in each):
        return "not UTF-8; save the file as UTF-8"
    if header is None:
        twice = (name for name in fields if name.strip() and fields.count(name) > 1)
        return next((f"the column {name!r} is there twice" for name in twice), "")
    if fields == header:
        return "this is the header again"
    return "" if len(fields) == len(header) else f"it has {len(fields)} fields, and the header {len(header)}"


def _parquet(stream: BinaryIO, file: str) -> Iterator[Raw]:
    with tempfile.TemporaryFile() as whole:  # it is read from its end
        shutil.copyfileobj(stream, whole)
        table, number = pyarrow.parquet.ParquetFile(whole), 0
        if problem := _wrong(None, table.schema_arrow.names):
            raise TutorialError(f"{file}: {problem}")
        rows = (row for batch in table.iter_batches(batch_size=1000) for row in batch.to_pylist())
        try:
            for number, row in enumerate(rows, start=1):
                yield Raw(("row", number), row, row)
        except UnicodeDecodeError:
            raise TutorialError(f"{file}, after row {number}: text that is not UTF-8") from None
