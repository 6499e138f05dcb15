import functools
import gzip
import http.server
import io
import json
import socket
import threading
import time
import tracemalloc
from contextlib import contextmanager

import boto3
import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.conftest import SOON_S
from tutorial import TutorialError, data, sources, tasks
from tutorial.files import Place
from tutorial.s3server import S3Server

VIGGO = tasks.load("viggo")
PLAIN = tasks.Task(columns={"prompt": "q", "response": "a"}, system_prompt="Answer.")
SAMPLE = data.load(VIGGO, "sample")
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
GOOD = {"instruction": "Say it.", "input": "Is it fun?", "output": "request(specifier[fun])"}


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def without(column):
    return {key: value for key, value in GOOD.items() if key != column}


def read(content, rejected=None, task=VIGGO):
    stream = io.BufferedReader(io.BytesIO(content), sources.BUFFER)
    return list(data.parse(stream, "train.jsonl", task, rejected))


def one_line_error(message, call, *arguments, **options):
    with pytest.raises(TutorialError) as error:
        call(*arguments, **options)
    assert error.type is TutorialError, "`make run` knows it by its name"
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def few(folder):
    """Three rows of each split, and the folder with their files."""
    rows = {split: part[:3] for split, part in SAMPLE.items()}
    folder.mkdir(exist_ok=True)
    for split, part in rows.items():
        (folder / f"{split}.jsonl").write_bytes(lines(*part) + b"\n")
    return rows


def load(source, **options):
    return data.load(VIGGO, str(source), **options)


@contextmanager
def serving(handler):
    """An HTTP server on a port of its own."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def website(tmp_path):
    """An HTTP server of the files in `tmp_path`."""
    with serving(functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)) as address:
        yield address


def answering(status, body=b""):
    """An HTTP server that answers everything alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return serving(Handler)


@pytest.fixture
def s3():
    """An S3 server that plays the user's, of whom this process's environment says nothing."""
    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD) + b"\n{not json}\n", "train.jsonl, line 2: not JSON (Expecting property name"),
        (
            lines(GOOD, GOOD)[:-9],
            "train.jsonl, line 2: not JSON (Unterminated string starting at: column 61); the file ends here",
        ),
        (lines(GOOD) + b"\n\n{}", "train.jsonl, line 3: column 'instruction'"),
        (
            lines(GOOD, without("input")),
            "train.jsonl, line 2: column 'input': it is missing; there are 'instr",
        ),
        (lines(GOOD, without("output")), "train.jsonl, line 2: column 'output'"),
        (lines(GOOD, GOOD | {"output": " "}), "train.jsonl, line 2: column 'output': a text is needed"),
        (lines(GOOD, GOOD | {"input": None}), "train.jsonl, line 2: column 'input': a text is needed"),
        (lines(GOOD, GOOD | {"input": True}), "train.jsonl, line 2: column 'input': a text is needed"),
        (lines(GOOD, GOOD | {"input": [7] * 10**6}), "train.jsonl, line 2: column 'input'"),
        (lines(GOOD, GOOD | {"input": float("nan")}), "train.jsonl, line 2: column 'input': nan is not JSON"),
        (lines(GOOD, GOOD | {"score": float("inf")}), "train.jsonl, line 2: column 'score': inf is not JSON"),
        (
            lines(GOOD) + b'\n{"input": "no", ' + lines(GOOD)[1:],
            "train.jsonl, line 2: column 'input': it is given twice",
        ),
        (lines(GOOD, GOOD | {"input": "\ud83d"}), "train.jsonl, line 2: column 'input': half of a surrogate"),
        (lines(GOOD, ["a", "list"]), "train.jsonl, line 2: an object with columns is needed"),
        (lines(GOOD, None), "train.jsonl, line 2: an object with columns is needed"),
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
            lines(GOOD | {"output": f"inform(name[{'a' * 81}])"}),
            "train.jsonl, line 1: column 'output': attribute 'name' has 81 characters, meaning.longest is 80",
        ),
        (
            lines(GOOD) + b"\n\xff\xfe\n",
            "train.jsonl, line 2: not UTF-8 (invalid start byte, byte 1); save the file as UTF-8",
        ),
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


def parquet():
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 3), sink)
    return sink.getvalue()


ARRAY = b"[\n" + lines(GOOD, GOOD, GOOD).replace(b"\n", b",\n") + b"\n]\n"  # its last element is a row


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"data": ' + ARRAY + b"}", "JSON with objects over several lines"),
        (lines(GOOD, GOOD, GOOD).replace(b"\n", b",\n"), "JSON with objects over several lines or commas"),
        (json.dumps(GOOD, indent=2).encode(), "JSON with objects over several lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:7\nsize 9\n", "a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(99), "a zip archive or an Excel file"),
        (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "an HTML or XML page"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML or XML page"),
        (lines(GOOD).decode().encode("utf-16"), "UTF-16"),
        (lines(GOOD).decode().encode("utf-16-le"), "UTF-16"),
        (lines(GOOD).decode().encode("utf-16-be"), "UTF-16"),
        (gzip.compress(lines(GOOD), mtime=0), "compressed twice, or not with gzip"),
        (b"BZh91AY&SY", "compressed twice, or not with gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed twice, or not with gzip"),
    ],
)
def test_a_file_of_another_shape_is_named_as_a_whole(content, name, tmp_path):
    """Also if bad rows may be set aside: none of its lines is a row."""
    rejected = tmp_path / "rejected.jsonl"
    for aside in (None, rejected):
        said = one_line_error(f"train.jsonl: this is {name}", read, content, aside)
        assert (
            "DATA takes JSON lines, a JSON array, CSV, TSV or Parquet, as it is or compressed with gzip"
            in said
        )
    assert not rejected.exists()


def test_the_shape_is_told_behind_gzip_and_over_the_web(tmp_path, website):
    few(tmp_path)
    (tmp_path / "val.jsonl").write_bytes(gzip.compress(b'{"data": ' + ARRAY + b"}"))
    for source in (tmp_path, website):
        one_line_error(
            "val.jsonl: this is JSON with objects", load, source, rejected=tmp_path / "rejected.jsonl"
        )
    with answering(200, b"<html>Please log in</html>") as address:
        one_line_error("train.jsonl: this is an HTML or XML page", load, address)


def test_a_first_row_that_is_bad_is_a_bad_row(tmp_path):
    for bad in (b"oops", b"{oops}", b'{"input": "caf\xe9"}', b"7", b'"a text, with a comma"'):
        assert read(bad + b"\n" + lines(GOOD, GOOD), tmp_path / "rejected.jsonl") == [GOOD, GOOD]


def test_byte_order_mark_crlf_and_line_separators_are_accepted():
    odd = GOOD | {"input": "one\u2028line"}  # a line separator to Python's splitlines, not to JSON lines
    content = lines(GOOD) + b"\r\n" + json.dumps(odd, ensure_ascii=False).encode() + b"\r\n"
    assert read(b"\xef\xbb\xbf" + content) == [GOOD, odd]


def test_a_line_of_many_megabytes_is_a_row():
    long = GOOD | {"input": "word " * 4 * 2**20}
    assert read(lines(GOOD, long, GOOD)) == [GOOD, long, GOOD]
    assert read(lines(long)) == [long]


def test_other_columns_are_passed_over():
    assert read(lines({"q": "one", "a": "two", "instruction": 7, "score": [0.5]}), task=PLAIN) == [
        {"instruction": "Answer.", "input": "one", "output": "two"}
    ]


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

    load(tmp_path, rejected=rejected, counts={"train": 2})
    assert capsys.readouterr().out == said

    assert data.load(VIGGO, "sample", rejected) == SAMPLE
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
    one_line_error(f"DATA: {tmp_path / name} cannot be read (Compressed file ended", load, tmp_path)
    (tmp_path / name).write_bytes(packed[:40] + bytes(20) + packed[60:])
    one_line_error(f"DATA: {tmp_path / name} cannot be read (Error -3 while decompressing", load, tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(lines(GOOD, {})))
    one_line_error(f"{name}, line 2: column", load, tmp_path)


@pytest.mark.parametrize("name", ["rows", "my rows", "Größe #1?", "100% = a+b"])
def test_a_folder_is_read_and_a_missing_file_is_named(tmp_path, name):
    folder = tmp_path / name
    rows = few(folder)
    assert load(folder) == load(f"{folder}/") == rows
    (folder / "val.jsonl").unlink()
    said = one_line_error(f"DATA={folder}: there is no val.jsonl, val.csv or val.parquet", load, folder)
    assert said.endswith("; the folder has test.jsonl, train.jsonl")
    one_line_error(f"DATA: {folder}-2 cannot be read (No such file or folder", load, f"{folder}-2")


def test_a_website_is_read_and_a_missing_file_is_named(website, tmp_path):
    rows = few(tmp_path)
    assert load(website) == load(f"{website}/") == rows
    val = tmp_path / "val.jsonl"
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(val.read_bytes()))
    val.unlink()
    assert load(website) == rows
    (tmp_path / "val.jsonl.gz").unlink()
    one_line_error(f"DATA: {website}/val.jsonl cannot be read (404", load, website)
    with_password = website.replace("//", "//user:secret@")
    one_line_error(f"DATA: {website}/val.jsonl cannot be read (404", load, with_password)
    for odd in (f"{with_password}/team#1", f"{with_password}/team?key=secret"):
        one_line_error(f"DATA={website}/team: set a folder's address, without ? and #", load, odd)


@pytest.mark.parametrize(
    "address", ["hf://datasets/mine", "abfss://a@b/c", "ftp://a/b", "s3:/a/b", "HTTP://a"]
)
def test_an_address_that_cannot_be_read_is_told_in_one_line(address):
    one_line_error(f"DATA={address.split('@')[0][:5]}", load, address)


@pytest.mark.parametrize("address", ["http://[::1", "http://", "https://.example.com", "http://a b"])
def test_an_address_that_is_none_is_told_in_one_line(address):
    one_line_error(f"DATA: {address.rstrip('/')[:6]}", load, address)


def test_a_download_that_breaks_off_is_an_error():
    """A server that promises more than it sends: what came is whole lines, and would pass for the file."""

    class BreaksOff(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            self.wfile.write(lines(GOOD) + b"\n")

    with serving(BreaksOff) as address:
        one_line_error(f"DATA: {address}/train.jsonl cannot be read (", load, address)
        task = VIGGO.model_copy(update={"source": address})
        one_line_error(f"DATA: {address}/train.jsonl cannot be read (", data.load, task)


@pytest.mark.parametrize("way", ["environment", "profile"])
def test_a_private_bucket_is_read_with_the_users_credentials(s3, store, way, tmp_path, monkeypatch):
    """While another run has a server of its own (`store`), with a bucket of the same name."""
    rows = few(tmp_path / "rows")
    (tmp_path / "rows" / "val.jsonl.gz").write_bytes(gzip.compress(lines(*rows["val"])))
    (tmp_path / "rows" / "val.jsonl").unlink()
    if way == "environment":
        settings = s3.address() | s3.keys
    else:
        key, secret = s3.keys.values()
        (tmp_path / "config").write_text(
            f"[profile mine]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n"
            f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )
        settings = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "mine"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3.Session().client("s3").create_bucket(Bucket="rows")
    for address in ("s3://tutorial/mine", "s3://rows/my rows"):
        Place.of(str(tmp_path / "rows")).copy_to(Place.of(address))
        assert load(address) == rows
    (s3.place() / "mine" / "test.jsonl").delete()
    one_line_error("DATA=s3://tutorial/mine: there is no test.jsonl", load, "s3://tutorial/mine")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["folder", "gzip", "website", "s3"])
def test_a_large_file_is_read_in_little_memory(tmp_path, website, s3, kind, monkeypatch):
    """1 GB in a folder, 200 MB elsewhere, in rows of 20 kB: read, and drawn from."""
    count = 50_000 if kind == "folder" else 10_000
    few(tmp_path)
    row = json.dumps(GOOD | {"input": "word " * 4000}).encode() + b"\n"
    target = tmp_path / ("train.jsonl.gz" if kind == "gzip" else "train.jsonl")
    (tmp_path / "train.jsonl").unlink()
    with gzip.open(target, "wb", compresslevel=1) if kind == "gzip" else target.open("wb") as file:
        for _ in range(count):
            file.write(row)
    source = website if kind == "website" else str(tmp_path)
    if kind == "s3":
        for name, value in (s3.address() | s3.keys).items():
            monkeypatch.setenv(name, value)
        Place.of(str(tmp_path)).copy_to(s3.place() / "large")
        source = "s3://tutorial/large"
    tracemalloc.start()
    try:
        rows = data.load(VIGGO, source, counts={"train": 100})
        assert (len(rows["train"]), rows["train"].read) == (100, count)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_rows_that_stand_in_two_splits_are_counted():
    first, second, third = (GOOD | {"input": f"Is it {n}?"} for n in range(3))
    other = GOOD | {"input": "Is it 0?", "output": "request(specifier[slow])"}
    said = data.overlap(
        {"train": [first, second, second], "val": [third, first], "test": [second, third, other]}
    )
    assert said == (
        "2 of 3 test rows have an answer that also occurs in train; rows that occur in two splits: "
        "1 in train and val, 1 in train and test, 1 in val and test"
    )


def silent():
    """The address of a server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["no connection", "no host", "no answer"])
def test_the_sample_stands_in_for_a_source_that_cannot_be_reached(kind, capsys, tmp_path):
    server, address = silent()
    source = {"no connection": NOWHERE, "no host": "http://rows.invalid", "no answer": address}[kind]
    task = VIGGO.model_copy(update={"source": source})
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text("of an earlier run\n")
    start = time.monotonic()
    assert data.load(task, rejected=rejected) == SAMPLE
    assert time.monotonic() - start < SOON_S
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "using synthetic data" in said
    assert not rejected.exists()
    server.close()


def test_no_sample_stands_in_unless_it_may():
    task = VIGGO.model_copy(update={"source": NOWHERE})
    assert len(data.load(task, counts={"train": 9})["train"]) == 9
    message = f"DATA: {NOWHERE} cannot be read ("
    one_line_error(message, data.load, task, sample_allowed=False)
    one_line_error(message, data.load, task, NOWHERE)
    one_line_error(message, data.load, task.model_copy(update={"sample": None}))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_source_that_answers_is_never_replaced_by_the_sample(status, capsys):
    with answering(status) as address:
        task = VIGGO.model_copy(update={"source": address})
        one_line_error(f"DATA: {address}/train.jsonl cannot be read ({status}", data.load, task)
    assert not capsys.readouterr().out


def test_a_source_that_goes_away_is_not_replaced_by_the_sample(tmp_path):
    """Neither is a source whose certificate is refused: something answered."""
    few(tmp_path)

    class Once(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if "train" in self.path:
                super().do_GET()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    with serving(functools.partial(Once, directory=tmp_path)) as address:
        task = VIGGO.model_copy(update={"source": address})
        one_line_error(f"DATA: {address}/val.jsonl cannot be read (", data.load, task)
        secure = VIGGO.model_copy(update={"source": address.replace("http", "https")})
        one_line_error(f"DATA: {secure.source} cannot be read (", data.load, secure)


def test_rows_are_drawn_at_random_by_seed():
    rows = SAMPLE["train"]
    drawn = data.pick(rows, 50, seed=1)
    assert drawn == data.pick(iter(rows), 50, seed=1)
    assert drawn != data.pick(rows, 50, seed=2)
    assert drawn != rows[:50]
    key = json.dumps
    assert len({key(row) for row in drawn}) == 50
    assert sorted(data.pick(rows, None, seed=1), key=key) == sorted(rows, key=key)
    assert data.pick(rows, 10**6, seed=1) == data.pick(rows, None, seed=1) != rows
    assert data.load(VIGGO, "sample", counts={"train": 50}, seed=1)["train"] == drawn
    assert (len(drawn), drawn.read) == (50, len(rows))


def test_each_row_is_drawn_as_often_as_another():
    drawn = [row for seed in range(2000) for row in data.pick(range(10), 3, seed)]
    counts = [drawn.count(row) for row in range(10)]
    assert min(counts) > 520  # 600 expected, 3.9 standard deviations
    assert max(counts) < 680
    firsts = [data.pick(range(10), 3, seed)[0] for seed in range(2000)]
    assert max(firsts.count(row) for row in range(10)) < 260  # 200 expected


TYPED = ["2024-01-31", "007", "true", "1e5", "null", "NaN", "None", "N/A", "12:30", "{}", "[]", "-", "0x1F"]


@pytest.mark.parametrize("answers", [*([text] for text in TYPED), TYPED], ids=lambda answers: answers[0])
def test_texts_that_look_like_other_types_survive_llamafactorys_reader(answers, tmp_path):
    rows = [{"instruction": "", "input": f"Is it {text}?", "output": text} for text in answers]
    files = data.write({"train": rows, "val": rows[:1]}, tmp_path)
    assert files == ["train.parquet", "val.parquet", "dataset_info.json"]
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["train"]["columns"] == {"system": "instruction", "prompt": "input", "response": "output"}
    read = datasets.load_dataset(  # as llamafactory.data.loader does
        path="parquet",
        data_files=[str(tmp_path / info["train"]["file_name"])],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert read.to_list() == rows


def test_other_columns_are_told_to_llamafactory(tmp_path):
    data.write({"train": [{"q": "one", "a": "two"}]}, tmp_path, {"prompt": "q", "response": "a"})
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == {
        "train": {"file_name": "train.parquet", "columns": {"prompt": "q", "response": "a"}}
    }
    assert pyarrow.parquet.read_table(tmp_path / "train.parquet").to_pylist() == [{"q": "one", "a": "two"}]
