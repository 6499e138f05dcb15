"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import json
import random
from pathlib import Path

import pyarrow.fs
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tutorial import TutorialError, one_line, sample, storage

BUCKET = "https://viggo-ds.s3.amazonaws.com"  # ViGGO's public bucket
EXPECTED = {"train": 5103, "val": 714, "test": 1083}  # ViGGO's rows (Juraska et al., INLG 2019)
TIMEOUT_S = 5

Rows = list[dict[str, str]]


class Row(BaseModel):
    """One row: the system turn, the user turn and the answer."""

    model_config = ConfigDict(extra="ignore", strict=True)

    instruction: str = Field(min_length=1)
    input: str = Field(min_length=1)
    output: str = Field(min_length=1)


def load(source: str | None, bucket: str = BUCKET) -> dict[str, Rows]:
    """All rows of the splits train, val and test.

    Args:
        source: a folder or URI (https://, s3://, gs://) that holds train.jsonl, val.jsonl and test.jsonl;
            `sample` for the embedded sample; None for ViGGO's bucket, or the sample with a word about it
            where the bucket cannot be reached within 5 s.
        bucket: the https address that stands for None.

    Raises:
        TutorialError: a file is missing or a row is bad; the file and the row are named.
    """
    if source == "sample":
        return sample.rows()
    if source is None:
        try:
            splits = {s: _fetch(f"{bucket}/{s}.jsonl") for s in EXPECTED}
        except requests.RequestException as error:
            answer = getattr(error.response, "status_code", None)
            reason = f"answers {answer}" if answer else f"cannot be reached within {TIMEOUT_S} s"
            print(f"{bucket} {reason}: using the embedded sample.")
            return sample.rows()
    else:
        splits = {s: _read(f"{source.rstrip('/')}/{s}.jsonl") for s in EXPECTED}
    return {split: parse(content, f"{split}.jsonl") for split, content in splits.items()}


def parse(content: bytes, file: str) -> Rows:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted.

    Raises:
        TutorialError: naming the file, and the row (from 1) that is not UTF-8, not JSON, or lacks a column.
    """
    rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate(json.loads(line.decode("utf-8"))).model_dump())
        except UnicodeDecodeError as error:
            raise TutorialError(f"{file}, row {number}: not UTF-8 ({error.reason})") from None
        except json.JSONDecodeError as error:
            raise TutorialError(f"{file}, row {number}: not JSON ({error})") from None
        except ValidationError as error:
            found = error.errors()[0]
            column = f"column {found['loc'][0]!r}: " if found["loc"] else ""
            raise TutorialError(f"{file}, row {number}: {column}{found['msg']}") from None
    if not rows:
        raise TutorialError(f"{file}: the split is empty; set DATA to files that hold rows")
    return rows


def pick(rows: Rows, count: int | None, seed: int) -> Rows:
    """`count` rows drawn at random (the first N would be whatever the file begins with); all for None."""
    if count is None or count >= len(rows):
        return rows
    return random.Random(seed).sample(rows, count)


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


def messages(row: dict[str, str]) -> list[dict[str, str]]:
    """The chat turns that ask for a row's answer."""
    return [
        {"role": "system", "content": row["instruction"]},
        {"role": "user", "content": row["input"]},
    ]


def _fetch(url: str) -> bytes:
    response = requests.get(url, timeout=TIMEOUT_S)
    response.raise_for_status()
    return response.content


def _read(uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if uri.startswith("s3://") and storage.S3Server.running and bucket != storage.BUCKET:
        # The run's own S3 server stands in for AWS in this process: read somebody's public bucket over https.
        uri = f"https://{bucket}.s3.amazonaws.com/{key}"
    try:
        if uri.startswith(("http://", "https://")):
            return _fetch(uri)
        if "://" not in uri:
            return Path(uri).expanduser().read_bytes()
        files, path = pyarrow.fs.FileSystem.from_uri(uri)
        with files.open_input_stream(path) as stream:
            return stream.read()
    except (OSError, ValueError, requests.RequestException) as error:
        raise TutorialError(f"DATA: {uri} cannot be read ({one_line(error)})") from None
