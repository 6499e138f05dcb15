import gzip
import json
import time

import boto3
import pytest

from tutorial import TutorialError, data, sample, storage, task

VIGGO = task.load("viggo")
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
GOOD = {"instruction": "Say it.", "input": "Is it fun?", "output": "request(specifier[fun])"}


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def without(column):
    return {key: value for key, value in GOOD.items() if key != column}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD) + b"\n{not json}", "train.jsonl, row 2: not JSON"),
        (lines(GOOD, without("input")), "train.jsonl, row 2: column 'input'"),
        (lines(GOOD, without("output")), "train.jsonl, row 2: column 'output'"),
        (lines(GOOD, GOOD | {"output": " "}), "train.jsonl, row 2: column 'output': a text is needed"),
        (lines(GOOD, GOOD | {"input": 7}), "train.jsonl, row 2: column 'input'"),
        (lines(GOOD, ["a", "list"]), "train.jsonl, row 2: "),
        (
            lines(GOOD, GOOD | {"output": "request(fun)"}),
            "train.jsonl, row 2: column 'output': column 9: attribute[value] expected",
        ),
        (
            lines(GOOD | {"output": "ask(name[])"}),
            "train.jsonl, row 1: column 'output': unknown function 'ask'",
        ),
        (lines(GOOD) + b"\n\xff\xfe", "train.jsonl, row 2: not UTF-8"),
        (gzip.compress(lines(GOOD)), "train.jsonl, row 1: not UTF-8"),
        (b"", "train.jsonl: the split is empty"),
        (b"\n\n", "train.jsonl: the split is empty"),
    ],
)
def test_bad_input_is_named_in_one_line(content, message):
    with pytest.raises(TutorialError) as error:
        data.parse(content, "train.jsonl", VIGGO)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_byte_order_mark_crlf_and_line_separators_are_accepted():
    odd = GOOD | {"input": "one\u2028line"}  # a line separator to Python's splitlines, not to JSON lines
    content = lines(GOOD) + b"\r\n" + json.dumps(odd, ensure_ascii=False).encode() + b"\r\n"
    assert data.parse(b"\xef\xbb\xbf" + content, "val.jsonl", VIGGO) == [GOOD, odd]


def test_a_folder_is_read_and_a_missing_file_is_named(tmp_path):
    rows = {split: part[:3] for split, part in sample.rows().items()}
    data.write(rows, tmp_path)
    assert data.load(VIGGO, str(tmp_path)) == rows
    (tmp_path / "val.jsonl").unlink()
    with pytest.raises(TutorialError, match=r"val\.jsonl cannot be read"):
        data.load(VIGGO, str(tmp_path))


def test_an_s3_address_is_read(store, tmp_path):
    rows = {split: part[:3] for split, part in sample.rows().items()}
    data.write(rows, tmp_path)
    uri = store.publish(tmp_path, "rows", ["train.jsonl", "val.jsonl", "test.jsonl"])
    assert data.load(VIGGO, uri) == rows


def test_a_bucket_of_the_users_own_is_read_beside_the_runs_server(store, tmp_path):
    """`store` plays the user's S3: its keys stand in the environment when the second server starts."""
    boto3.client("s3").create_bucket(Bucket="rows")
    rows = {split: part[:3] for split, part in sample.rows().items()}
    data.write(rows, tmp_path)
    storage.fetch(str(tmp_path), "s3://rows/mine")
    run = storage.Storage.open(None, "viggo-2")
    try:
        assert data.load(VIGGO, "s3://rows/mine") == rows
    finally:
        run.close()
    assert data.load(VIGGO, "s3://rows/mine") == rows  # and so when it has stopped


def test_the_sample_stands_in_for_an_unreachable_bucket(capsys):
    start = time.monotonic()
    assert data.load(VIGGO.model_copy(update={"source": NOWHERE})) == sample.rows()
    assert time.monotonic() - start < 10
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "using the embedded sample" in said


def test_an_unreachable_source_that_was_asked_for_is_an_error():
    with pytest.raises(TutorialError, match=r"DATA: http://127\.0\.0\.1:9/train\.jsonl cannot be read"):
        data.load(VIGGO, NOWHERE)


def test_rows_are_drawn_at_random_by_seed():
    rows = sample.rows()["train"]
    drawn = data.pick(rows, 50, seed=1)
    assert drawn == data.pick(rows, 50, seed=1)
    assert drawn != data.pick(rows, 50, seed=2)
    assert drawn != rows[:50]
    key = json.dumps
    assert sorted(data.pick(rows, None, seed=1), key=key) == sorted(rows, key=key)
    assert data.pick(rows, 10**6, seed=1) == data.pick(rows, None, seed=1) != rows
