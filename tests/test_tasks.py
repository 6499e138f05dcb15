import pytest
import yaml

from tests.conftest import ROOT
from tutorial import TutorialError, data, settings, tasks

NAMES = sorted(path.stem for path in (ROOT / "tasks").glob("*.yaml"))
GOOD = {"columns": {"prompt": "q", "response": "a"}, "system_prompt": "Answer."}
ROWS = (
    "def rows(seed):\n    return {s: [{'q': f'{s} {seed}', 'a': 'yes'}] for s in ('train', 'val', 'test')}\n"
)


def mine(folder, change=(), rows=None):
    """The path of a reader's own task, with its generator beside it."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(GOOD | dict(change)))
    if rows is not None:
        (folder / "mine_rows.py").write_text(rows)
    return str(folder / "mine.yaml")


def refused(message, call, *arguments):
    with pytest.raises(TutorialError) as error:
        call(*arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_and_its_sample_fit(name):
    task = tasks.load(name)
    assert task.name == name
    for part in data.load(task, "sample").values():
        for row in part:
            task.check(row["output"])
            assert len(row["instruction"]) > 0


def test_a_task_of_ones_own_brings_its_rows(tmp_path, monkeypatch):
    path = mine(tmp_path, {"sample": "mine_rows.py"}, ROWS)
    monkeypatch.chdir("/")
    task = tasks.load(path)
    assert (task.name, tasks.load(f"{tmp_path}/../{tmp_path.name}/mine.yaml").name) == ("mine", "mine")
    assert data.load(task)["val"] == [{"instruction": "Answer.", "input": "val 0", "output": "yes"}]


def test_a_task_without_rows_of_its_own(tmp_path):
    task = tasks.load(mine(tmp_path))
    assert task.sample_rows() is None
    refused("DATA: the task 'mine' has no sample of its own; set DATA", data.load, task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colums": {}}, "mine.yaml: colums: there is no such key; the keys are columns, system_prompt, "),
        (
            {"columns": {"promt": "q", "response": "a"}},
            "mine.yaml: columns.promt: there is no such key; the keys are system, prompt, query, response, ",
        ),
        ({"columns": {"prompt": "q"}}, "mine.yaml: columns: set prompt and response, or messages"),
        (
            {"columns": {"prompt": "q", "response": "a", "messages": "m"}},
            "mine.yaml: columns: set prompt and response, or messages",
        ),
        (
            {"columns": {"system": "s", "prompt": "q", "response": "a"}},
            "mine.yaml: set either system_prompt or columns.system",
        ),
        ({"few_shot": 0}, "mine.yaml: few_shot: Input should be greater than 0"),
        ({"name": "other"}, "mine.yaml: name: there is no such key; the keys are "),
        (
            {"meaning": {"functions": ["f"], "attributes": {"a": "text"}, "most": 7}},
            "mine.yaml: meaning.most: there is no such key; the keys are functions, attributes, longest",
        ),
        ({1: "one"}, "mine.yaml: line 5: "),
        (
            {"columns": {"prompt": "q", "response": "a", 7: "b"}},
            "mine.yaml: line 4: ",
        ),
        ({"source": 7}, "mine.yaml: source: Input should be a valid string"),
        ({"expected": {"dev": 7}}, "mine.yaml: expected.dev"),
        ({"sample": "no_rows.py"}, "mine.yaml: sample: there is no file no_rows.py beside it"),
        ({"sample": "tutorial.sample"}, "mine.yaml: sample: String should match pattern"),
        (
            {"meaning": {"functions": [], "attributes": {"a": "text"}}},
            "mine.yaml: meaning.functions: List should",
        ),
        (
            {"meaning": {"functions": ["f"], "attributes": {}}},
            "mine.yaml: meaning.attributes: Dictionary should",
        ),
        ({"meaning": {"functions": ["f"], "attributes": {"a": []}}}, "mine.yaml: meaning.attributes.a"),
        (
            {"meaning": {"functions": ["f"], "attributes": {1: "text"}}},
            "mine.yaml: line 6: ",
        ),
    ],
    ids=str,
)
def test_a_bad_task_file_is_refused_in_one_line(tmp_path, change, message):
    refused(message, tasks.load, mine(tmp_path, change))


@pytest.mark.parametrize(
    "content",
    [yaml.safe_dump(GOOD).encode("utf-16"), b"system_prompt: caf\xe9", b"a: \x00", b"a: [", b"- a", b""],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    refused("mine.yaml: ", tasks.load, str(tmp_path / "mine.yaml"))


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path):
    text = yaml.safe_dump(GOOD).replace("\n", "\r\n")
    (tmp_path / "mine.yaml").write_bytes(text.encode("utf-8-sig"))
    assert tasks.load(str(tmp_path / "mine.yaml")).system_prompt == "Answer."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "mine_rows.py: no rows from rows(seed): module 'mine_rows' has no attribute 'rows'"),
        ("def rows(seed): return 7 / seed\n", "mine_rows.py: line 1: ZeroDivisionError: division by zero"),
        ("def rows(seed)\n", "mine_rows.py: no rows from rows(seed): expected ':'"),
        ("import no.such\n", "mine_rows.py: line 1: ModuleNotFoundError"),
        ("def rows(seed): return {'train': []}\n", "mine_rows.py: no rows from rows(seed): 'val'"),
        (ROWS.replace("'yes'", "[7]"), "mine_rows.py: train, row 1: column 'a': a text is needed"),
        (
            ROWS.replace("'a':", "'b':"),
            "mine_rows.py: train, row 1: column 'a': it is missing; there are 'q', 'b'",
        ),
    ],
)
def test_rows_that_cannot_be_made_are_told_in_one_line(tmp_path, rows, message):
    task = tasks.load(mine(tmp_path, {"sample": "mine_rows.py"}, rows))
    refused(message, data.load, task)


def test_a_task_that_is_not_there():
    refused("TASK=chess: No such file", tasks.load, "chess")
    assert "set TASK to one of orders, tickets, trains, viggo" in refused(
        "TASK=no/such.yaml: ", tasks.load, "no/such.yaml"
    )


def test_the_task_is_a_setting(monkeypatch):
    monkeypatch.setenv("TASK", "trains")
    assert settings.load(ROOT / "no.env").task == "trains"
