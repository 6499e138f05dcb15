"""The task's rows: where they come from, and the checks that they pass before anything uses them."""

import json
import random
from pathlib import Path

import pyarrow.fs
import requests

from tutorial import TutorialError, meaning, one_line, storage
from tutorial.task import Task

SPLITS = ("train", "val", "test")
TIMEOUT_S = 5

Rows = list[dict[str, str]]


def load(task: Task, source: str | None = None) -> dict[str, Rows]:
    """All rows of the splits train, val and test, in the columns `instruction`, `input` and `output`.

    Args:
        task: says what the columns are called in the files, and what an output may hold.
        source: a folder or URI (https://, s3://, gs://) that holds train.jsonl, val.jsonl and test.jsonl;
            `sample` for the task's embedded sample; None for the task's own source, or its sample, with a
            word about it where the source cannot be reached within 5 s.

    Raises:
        TutorialError: a file is missing or a row is bad; the file and the row are named.
    """
    made = task.sample_module()
    if source == "sample" or (source is None and task.source is None):
        if made is None:
            raise TutorialError(f"DATA: the task {task.name!r} has no sample of its own; set DATA")
        return _sample(task)
    if source is None:
        try:
            splits = {s: _fetch(f"{task.source}/{s}.jsonl") for s in SPLITS}
        except requests.RequestException as error:
            if made is None:
                raise TutorialError(f"DATA: {task.source} cannot be read ({one_line(error)})") from None
            answer = getattr(error.response, "status_code", None)
            reason = f"answers {answer}" if answer else f"cannot be reached within {TIMEOUT_S} s"
            print(f"{task.source} {reason}: using the embedded sample.")
            return _sample(task)
    else:
        splits = {s: _read(f"{source.rstrip('/')}/{s}.jsonl") for s in SPLITS}
    return {split: parse(content, f"{split}.jsonl", task) for split, content in splits.items()}


def parse(content: bytes, file: str, task: Task) -> Rows:
    """The rows of one JSON-lines file; a byte order mark and CRLF line ends are accepted.

    Raises:
        TutorialError: naming the file, and the row (from 1) that is not UTF-8, not JSON, lacks a column, or
            whose output is none that the task allows.
    """
    rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line.decode("utf-8")), task))
        except UnicodeDecodeError as error:
            raise TutorialError(f"{file}, row {number}: not UTF-8 ({error.reason})") from None
        except json.JSONDecodeError as error:
            raise TutorialError(f"{file}, row {number}: not JSON ({error})") from None
        except ValueError as error:
            raise TutorialError(f"{file}, row {number}: {error}") from None
    if not rows:
        raise TutorialError(f"{file}: the split is empty; set DATA to files that hold rows")
    return rows


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


def pick(rows: Rows, count: int | None, seed: int) -> Rows:
    """`count` rows drawn at random (the first N would be whatever the file begins with), at most and for
    None all, in random order."""
    return random.Random(seed).sample(rows, min(count or len(rows), len(rows)))


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


def _fetch(url: str) -> bytes:
    response = requests.get(url, timeout=TIMEOUT_S)
    response.raise_for_status()
    return response.content


def _read(uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    server, files = storage.S3Server.running, None
    if uri.startswith("s3://") and server and bucket != storage.BUCKET:
        # The run's own S3 server stands in for AWS in this process, and these rows are not on it. A public
        # bucket is read over https.
        files = server.outside()
        uri = uri if files else f"https://{bucket}.s3.amazonaws.com/{key}"
    try:
        if uri.startswith(("http://", "https://")):
            return _fetch(uri)
        if "://" not in uri:
            return Path(uri).expanduser().read_bytes()
        files, path = (files, f"{bucket}/{key}") if files else pyarrow.fs.FileSystem.from_uri(uri)
        with files.open_input_stream(path) as stream:
            return stream.read()
    except (OSError, ValueError, requests.RequestException) as error:
        raise TutorialError(f"DATA: {uri} cannot be read ({one_line(error)})") from None
