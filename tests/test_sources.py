"""What DATA may name: a folder, one file, an address, a data set of the hub; and the task that they make."""

import functools
import http.server
import json

import pytest

from tests.test_data import SAMPLE, few, lines, one_line_error, serving
from tests.test_layouts import TYPES
from tutorial import data, settings, tasks

ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(30)]
FOUND = {"type": "CSV", "layout": "prompt and response", "columns": "question → prompt, answer → response"}


def load(source, **options):
    return data.load(tasks.choose(None, str(source)), str(source), **options)


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "val.csv", "test.csv"),
        ("train.tsv", "validation.json", "test.parquet"),  # the content says what a file is
        ("my-train.csv", "my-dev.csv", "my-test.csv"),
        ("Train_2024.csv", "valid_2024.csv", "TEST_2024.csv"),
    ],
)
def test_a_folder_of_splits(names, tmp_path):
    for name, part in zip(names, (ROWS[:20], ROWS[20:25], ROWS[25:]), strict=True):
        (tmp_path / name).write_bytes(TYPES["CSV"](part))
    (tmp_path / "notes.txt").write_text("train and test")
    rows = load(tmp_path)
    assert [(len(part), part.found) for part in rows.values()] == [
        (count, {"file": name} | FOUND) for count, name in zip((20, 5, 5), names, strict=True)
    ]
    assert rows["test"][0] == {"instruction": "", "input": "What is 25 + 1?", "output": "26"}


def test_shards_are_one_split_and_other_files_are_not(tmp_path):
    for number, part in enumerate((ROWS[:10], ROWS[10:20])):
        (tmp_path / f"train-0000{number}-of-00002.csv").write_bytes(TYPES["CSV"](part))
    for split in ("val", "test"):
        (tmp_path / f"{split}.csv").write_bytes(TYPES["CSV"](ROWS[20:]))
    rows = load(tmp_path)
    assert [row["output"] for row in rows["train"]] == [str(n + 1) for n in range(20)]
    assert rows["train"].found["file"] == "train-00000-of-00002.csv and 1 more"

    (tmp_path / "dev.csv").write_bytes(TYPES["CSV"](ROWS[20:]))
    said = one_line_error(f"DATA={tmp_path}: dev.csv, val.csv could all be val", load, tmp_path)
    assert said.endswith("name one file or folder")


def test_a_folder_with_one_file_is_that_file(tmp_path):
    (tmp_path / "everything.csv").write_bytes(TYPES["CSV"](ROWS))
    assert load(tmp_path) == load(tmp_path / "everything.csv")


def test_an_empty_folder_and_an_empty_file(tmp_path):
    one_line_error(f"DATA={tmp_path}: there is no train.jsonl, train.csv or train.parquet", load, tmp_path)
    (tmp_path / "mine.csv").write_bytes(b"")
    one_line_error("mine.csv: the split is empty; set DATA to files with rows", load, tmp_path / "mine.csv")


def test_one_file_is_divided_by_seed_and_no_question_is_in_two_splits(tmp_path):
    """Nor is one that is written otherwise."""
    again = [row | {"question": f"  {row['question'].upper()} ", "answer": "again"} for row in ROWS[::3]]
    (tmp_path / "mine.csv").write_bytes(TYPES["CSV"](ROWS + again))
    rows = load(tmp_path / "mine.csv")
    assert sum(map(len, rows.values())) == 40
    assert [3 < len(rows[split]) < 6 for split in ("val", "test")] == [True, True]
    asked = {split: {data.question(row) for row in part} for split, part in rows.items()}
    assert sum(map(len, asked.values())) == len(set.union(*asked.values())) == 30
    assert load(tmp_path / "mine.csv") == rows
    assert load(tmp_path / "mine.csv", seed=1)["test"] != rows["test"]
    counted = load(tmp_path / "mine.csv", counts={"train": 5, "val": 2})
    assert [(len(part), part.read) for part in counted.values()] == [
        (5, len(rows["train"])),
        (2, len(rows["val"])),
        (len(rows["test"]), len(rows["test"])),
    ]


def test_one_file_of_three_rows_and_of_two(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(TYPES["CSV"](ROWS[:3]))
    assert [len(part) for part in load(path).values()] == [1, 1, 1]
    path.write_bytes(TYPES["CSV"](ROWS[:2] + ROWS[:2]))
    one_line_error("DATA: too few different questions (2) for 3 splits; set DATA to", load, path)


def test_a_question_with_many_rows_is_in_train(tmp_path):
    (tmp_path / "mine.csv").write_bytes(
        TYPES["CSV"](ROWS + [ROWS[0] | {"answer": str(n)} for n in range(30)])
    )
    rows = load(tmp_path / "mine.csv")
    assert [len(rows[split]) for split in ("train", "val", "test")] == [48, 6, 6]


def test_bad_rows_of_one_file_are_counted_once(tmp_path, capsys):
    (tmp_path / "mine.csv").write_bytes(TYPES["CSV"](ROWS) + b"one\n")
    rows = load(tmp_path / "mine.csv", rejected=tmp_path / "rejected.jsonl")
    assert sum(map(len, rows.values())) == 30
    assert capsys.readouterr().out.startswith("SKIP_BAD_ROWS: 1 of 31 rows are bad")


def test_a_website_is_asked_for_the_usual_names(tmp_path):
    for name in ("train.csv.gz", "val.csv", "test.csv"):
        (tmp_path / name).write_bytes(TYPES["CSV"](ROWS))
    (tmp_path / "mine.csv").write_bytes(TYPES["CSV"](ROWS))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with serving(handler) as address:
        assert [part.found["file"] for part in load(address).values()] == [
            "train.csv.gz",
            "val.csv",
            "test.csv",
        ]
        one = load(f"{address}/mine.csv?signature=secret")
        assert [len(part) for part in one.values()] == [24, 3, 3]
        message = f"DATA: {address}/yours.csv cannot be read (404"
        assert "secret" not in one_line_error(message, load, f"{address}/yours.csv?signature=secret")


HUB = {
    ".gitattributes": b"",
    "README.md": b"# Sums",
    "data/train-00000-of-00002.csv": TYPES["CSV"](ROWS[:15]),
    "data/train-00001-of-00002.csv": TYPES["CSV"](ROWS[15:]),
    "data/validation-00000-of-00001.parquet": TYPES["Parquet"](ROWS[:4]),
}


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as huggingface_hub asks for a public data set."""

    def do_GET(self):
        api, path = "/api/datasets/owner/sums", self.path.split("?", maxsplit=1)[0]
        if path == api:
            self.answer(json.dumps({"id": "owner/sums", "sha": "a" * 40}).encode())
        elif path.startswith(f"{api}/tree/main"):
            tree = [{"type": "directory", "path": "data", "oid": "1"}]
            tree += [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in HUB.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/datasets/owner/sums/resolve/main/"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self.answer(HUB[path.split("/main/")[1]][int(first) : int(last) + 1], 206)
        else:
            self.answer(b'{"error": "Repository not found"}', 404)

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Error-Code", "RepoNotFound" if status == 404 else "")
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    "address", ["hf://datasets/owner/sums", "https://huggingface.co/datasets/owner/sums/"]
)
def test_a_data_set_of_the_hub(address, monkeypatch):
    """Against a server of ours. What the hub lacks, here test, is divided from train."""
    with serving(HubHandler) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        rows = load(address)
        assert [len(part) for part in rows.values()] == [27, 4, 3]
        assert [rows[split].found["type"] for split in ("train", "val")] == ["CSV", "Parquet"]
        assert tasks.choose(None, address).name == "sums"
        one = load("hf://datasets/owner/sums/data/train-00001-of-00002.csv")
        assert sum(map(len, one.values())) == 15
        one_line_error(
            "DATA: hf://datasets/owner/none cannot be read (No such", load, "hf://datasets/owner/none"
        )


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    one_line_error("DATA: hf://datasets/owner/x cannot be read ([Errno 111]", load, "hf://datasets/owner/x")
    one_line_error("DATA=hf://owner/x: unknown scheme 'hf'", load, "hf://owner/x")


def test_the_task_without_task(tmp_path):
    """ViGGO's rows are the task viggo; others make a plain task; `TASK` wins."""
    folder = tmp_path / "games"
    few(folder)
    viggo = tasks.load("viggo")
    for source in (None, "sample", str(folder), str(folder / "train.jsonl")):
        assert tasks.choose(None, source) == viggo
    other = [row | {"output": f"It says: {row['output']}"} for row in SAMPLE["train"][:5]]
    (tmp_path / "My rows.v2.jsonl").write_bytes(lines(*other))
    task = tasks.choose(None, str(tmp_path / "My rows.v2.jsonl"))
    assert (task.name, task.columns, task.meaning, task.system_prompt) == ("my-rows", None, None, None)
    row = data.load(task, str(tmp_path / "My rows.v2.jsonl"))["test"][0]
    assert row["instruction"] == ""
    assert row["input"].startswith("Give the meaning of the sentence")  # as alpaca's rows are asked
    assert tasks.choose("trains", str(folder)) == tasks.load("trains")
    one_line_error(
        f"DATA: {tmp_path}/no.csv cannot be read (No such", tasks.choose, None, f"{tmp_path}/no.csv"
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "viggo-"),
        ({"data": "sample"}, "viggo-"),
        ({"data": "rows/Mine.csv.gz"}, "mine-"),
        ({"data": "hf://datasets/owner/name"}, "name-"),
        ({"data": "https://x.org/a.csv?key=secret", "task": "my/Own_task.yaml"}, "own-task-"),
        ({"data": "https://x.org/a.csv?key=a/secret"}, "a-"),
    ],
)
def test_a_run_is_named_after_its_task_or_data(given, name):
    found = settings.Settings(_env_file=None, **given)
    assert found.run_name.startswith(name)
    assert "secret" not in found.run_name


def test_the_columns_of_a_task_file_are_taken_whatever_else_there_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("columns: {messages: talk}\n")
    row = {
        "prompt": "no",
        "response": "no",
        "talk": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}],
    }
    rows = [row, row | {"talk": [{"role": "user", "content": str(n)} for n in range(2)]}]
    (tmp_path / "mine.jsonl").write_bytes(lines(*rows))
    task = tasks.load(str(tmp_path / "mine.yaml"))
    message = "mine.jsonl, line 2: column 'talk', turn 2: two user turns in a row"
    one_line_error(message, data.load, task, str(tmp_path / "mine.jsonl"))
    (tmp_path / "mine.jsonl").write_bytes(lines({"input": "a"}))
    message = "mine.yaml: columns.messages: mine.jsonl has no column 'talk'; it has 'input'"
    one_line_error(message, data.load, task, str(tmp_path / "mine.jsonl"))


def test_a_misspelt_column_of_a_task_file_is_no_bad_row(tmp_path):
    """Not even if bad rows are set aside. A column that a row may lack may be missing in all."""
    (tmp_path / "mine.csv").write_text("ticket,queue\n" + "".join(f"t{n},q{n}\n" for n in range(9)))
    (tmp_path / "mine.yaml").write_text("columns: {prompt: tikcet, response: queue}\n")
    message = "mine.yaml: columns.prompt: mine.csv has no column 'tikcet'; it has 'ticket', 'queue'"
    for rejected in (None, tmp_path / "rejected.jsonl"):
        task = tasks.load(str(tmp_path / "mine.yaml"))
        assert one_line_error(message, data.load, task, str(tmp_path / "mine.csv"), rejected) == message
    (tmp_path / "mine.yaml").write_text("columns: {prompt: ticket, response: queue, history: before}\n")
    assert len(data.load(tasks.load(str(tmp_path / "mine.yaml")), str(tmp_path / "mine.csv"))["train"]) == 7
