import functools
import gzip
import http.server
import io
import json
import threading
import time
import tracemalloc

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


def read(content, rejected=None):
    return list(data.parse(io.BytesIO(content), "train.jsonl", VIGGO, rejected))


def one_line_error(message, call, *arguments):
    with pytest.raises(TutorialError) as error:
        call(*arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def few(folder):
    """Three rows of each split, and the folder with their files."""
    rows = {split: part[:3] for split, part in sample.rows().items()}
    data.write(rows, folder)
    return rows


def load(source, **options):
    """What `data.load` reads, as lists."""
    return {split: list(part) for split, part in data.load(VIGGO, str(source), **options).items()}


@pytest.fixture
def website(tmp_path):
    """An HTTP server of the files in `tmp_path`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD) + b"\n{not json}\n", "train.jsonl, line 2: not JSON (Expecting property name"),
        (
            lines(GOOD, GOOD)[:-9],
            "train.jsonl, line 2: not JSON (Unterminated string starting at: column 61); the file ends here",
        ),
        (lines(GOOD) + b"\n\n{}", "train.jsonl, line 3: column 'instruction'"),
        (lines(GOOD, without("input")), "train.jsonl, line 2: column 'input'"),
        (lines(GOOD, without("output")), "train.jsonl, line 2: column 'output'"),
        (lines(GOOD, GOOD | {"output": " "}), "train.jsonl, line 2: column 'output': a text is needed"),
        (lines(GOOD, GOOD | {"input": 7}), "train.jsonl, line 2: column 'input'"),
        (lines(GOOD, GOOD | {"input": [7] * 10**6}), "train.jsonl, line 2: column 'input'"),
        (lines(GOOD, GOOD | {"input": "\ud83d"}), "train.jsonl, line 2: column 'input': half of a surrogate"),
        (lines(GOOD, ["a", "list"]), "train.jsonl, line 2: "),
        (
            lines(GOOD, GOOD | {"output": "request(fun)"}),
            "train.jsonl, line 2: column 'output': column 9: attribute[value] expected",
        ),
        (
            lines(GOOD | {"output": "ask(name[])"}),
            "train.jsonl, line 1: column 'output': unknown function 'ask'",
        ),
        (lines(GOOD | {"output": "a" * 10**6 + "(name[])"}), "train.jsonl, line 1: column 'output': unknown"),
        (
            lines(GOOD) + b"\n\xff\xfe\n",
            "train.jsonl, line 2: not UTF-8 (invalid start byte, byte 1); mend it",
        ),
        (json.dumps(GOOD).encode("utf-16"), "train.jsonl, line 1: not UTF-8"),
        (lines(GOOD) + b"\n" + b"[" * 10**6, "train.jsonl, line 2: not JSON that can be read"),
        (lines(GOOD) + b"\n" + b" " * (2**26 + 9) + b"{}", "train.jsonl, line 2: longer than 64 MiB"),
        (b"", "train.jsonl: the split is empty"),
        (b"\xef\xbb\xbf", "train.jsonl: the split is empty"),
        (b"\n\n", "train.jsonl: the split is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named_in_one_line(content, message):
    one_line_error(message, read, content)


def test_byte_order_mark_crlf_and_line_separators_are_accepted():
    odd = GOOD | {"input": "one\u2028line"}  # a line separator to Python's splitlines, not to JSON lines
    content = lines(GOOD) + b"\r\n" + json.dumps(odd, ensure_ascii=False).encode() + b"\r\n"
    assert read(b"\xef\xbb\xbf" + content) == [GOOD, odd]


def test_a_line_of_many_megabytes_is_a_row():
    long = GOOD | {"input": "word " * 4 * 2**20}
    assert read(lines(GOOD, long, GOOD)) == [GOOD, long, GOOD]


def test_bad_rows_are_set_aside_and_counted(tmp_path, capsys):
    rows = few(tmp_path)
    bad = (b"{not json}", b'{"input": "caf\xe9"}', b"x" * (2**26 + 9))
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b"\n".join(bad) + b"\r\n" + lines(GOOD))
    with (tmp_path / "test.jsonl").open("ab") as file:
        file.write(lines(without("output")))
    rejected = tmp_path / "out" / "rejected.jsonl"
    assert load(tmp_path, rejected=rejected) == rows | {"train": [*rows["train"], GOOD]}
    said = capsys.readouterr().out
    assert said == f"SKIP_BAD_ROWS: 4 of 14 rows are bad and were set aside in {rejected}\n"
    found = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [(row["file"], row["line"], row["reason"][:12]) for row in found] == [
        ("train.jsonl", 4, "not JSON (Ex"),
        ("train.jsonl", 5, "not UTF-8 (i"),
        ("train.jsonl", 6, "longer than "),
        ("test.jsonl", 4, "column 'outp"),
    ]
    assert [row["text"] for row in found[:2]] == ["{not json}", '{"input": "caf\\xe9"}']
    assert json.loads(found[3]["text"]) == without("output")

    assert data.load(VIGGO, "sample", rejected) == sample.rows()
    assert not rejected.exists()
    assert not capsys.readouterr().out


def test_all_rows_bad_is_an_error_all_the_same(tmp_path):
    few(tmp_path)
    (tmp_path / "val.jsonl").write_bytes(b"{}\n[]\n")
    rejected = tmp_path / "rejected.jsonl"
    message = f"val.jsonl: no row is good, all are in {rejected}; the first: val.jsonl, line 1: column 'instr"
    one_line_error(message, data.load, VIGGO, str(tmp_path), rejected)
    assert len(rejected.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_gzip_is_read_under_either_name(tmp_path, name):
    rows = few(tmp_path)
    plain = tmp_path / "train.jsonl"
    packed = gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes())
    plain.unlink()
    (tmp_path / name).write_bytes(packed)
    assert load(tmp_path) == rows

    (tmp_path / name).write_bytes(packed[:-9])
    one_line_error(f"DATA: {plain} cannot be read (Compressed file ended", load, tmp_path)
    (tmp_path / name).write_bytes(packed[:40] + bytes(20) + packed[60:])
    one_line_error(f"DATA: {plain} cannot be read (Error -3 while decompressing", load, tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(lines(GOOD, {})))
    one_line_error(f"{name}, line 2: column", load, tmp_path)


def test_a_folder_is_read_and_a_missing_file_is_named(tmp_path):
    rows = few(tmp_path)
    assert load(tmp_path) == rows
    (tmp_path / "val.jsonl").unlink()
    path = tmp_path / "val.jsonl"
    message = f"DATA: {path} cannot be read ([Errno 2] No such file or directory: '{path}')"
    one_line_error(message, load, tmp_path)


def test_a_website_is_read_and_a_missing_file_is_named(website, tmp_path):
    rows = few(tmp_path)
    assert load(website) == rows
    val = tmp_path / "val.jsonl"
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(val.read_bytes()))
    val.unlink()
    assert load(website) == rows
    (tmp_path / "val.jsonl.gz").unlink()
    one_line_error(f"DATA: {website}/val.jsonl cannot be read (404", load, website)


def test_a_download_that_breaks_off_is_an_error(tmp_path):
    """A server that promises more than it sends: what came is whole lines, and would pass for the file."""

    class BreaksOff(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            self.wfile.write(lines(GOOD) + b"\n")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        one_line_error(f"DATA: {address}/train.jsonl cannot be read (", load, address)
        server.shutdown()


def test_an_s3_address_is_read(store, tmp_path):
    rows = few(tmp_path)
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress((tmp_path / "val.jsonl").read_bytes()))
    files = ["train.jsonl", "val.jsonl.gz", "test.jsonl"]
    assert load(store.publish(tmp_path, "rows", files)) == rows
    uri = store.publish(tmp_path, "two", files[:2])
    one_line_error(f"DATA: {uri}/test.jsonl cannot be read (", load, uri)


def test_a_bucket_of_the_users_own_is_read_beside_the_runs_server(store, tmp_path):
    """`store` plays the user's S3: its keys stand in the environment when the second server starts."""
    boto3.client("s3").create_bucket(Bucket="rows")
    rows = few(tmp_path)
    storage.fetch(str(tmp_path), "s3://rows/mine")
    run = storage.Storage.open(None, "viggo-2")
    try:
        assert load("s3://rows/mine") == rows
    finally:
        run.close()
    assert load("s3://rows/mine") == rows  # and so when it has stopped


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["folder", "gzip", "website", "s3"])
def test_a_large_file_is_read_in_little_memory(tmp_path, website, store, kind):
    """1 GB in a folder, 200 MB elsewhere, in rows of 20 kB: read, and drawn from."""
    count = 50_000 if kind == "folder" else 10_000
    few(tmp_path)
    row = json.dumps(GOOD | {"input": "word " * 4000}).encode() + b"\n"
    target = tmp_path / ("train.jsonl.gz" if kind == "gzip" else "train.jsonl")
    target.unlink(missing_ok=True)
    (tmp_path / "train.jsonl").unlink(missing_ok=True)
    with gzip.open(target, "wb", compresslevel=1) if kind == "gzip" else target.open("wb") as file:
        for _ in range(count):
            file.write(row)
    source = {"website": website, "s3": store.uri("large")}.get(kind, str(tmp_path))
    if kind == "s3":
        store.publish(tmp_path, "large", ["train.jsonl", "val.jsonl", "test.jsonl"])
    tracemalloc.start()
    try:
        rows = data.load(VIGGO, source)
        assert len(rows["train"]) == count
        assert len(data.pick(rows["train"], 100, seed=0)) == 100
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_rows_that_stand_in_two_splits_are_counted():
    first, second, third = ({"input": f"Is it {n}?", "output": "request(specifier[fun])"} for n in range(3))
    other = {"input": "Is it 0?", "output": "request(specifier[slow])"}
    said = data.overlap(
        {"train": [first, second, second], "val": [third, first], "test": [second, third, other]}
    )
    assert said == (
        "2 of 3 test rows have an answer that stands in train too; rows that stand in two splits: "
        "1 in train and val, 1 in train and test, 1 in val and test"
    )


def test_spooled_rows_are_a_sequence():
    rows = [GOOD | {"input": f"\u00e9{number}"} for number in range(9)]
    spooled = data.SpooledRows(iter(rows))
    assert list(spooled) == rows
    assert spooled[-1] == rows[-1]
    assert spooled[2:9:3] == rows[2:9:3]
    assert data.pick(spooled, 4, seed=3) == data.pick(rows, 4, seed=3)


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
