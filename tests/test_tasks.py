import importlib
import io
import re

import pytest
import yaml

from tests.conftest import ROOT
from tutorial import TutorialError, data, settings, task
from tutorial.meaning import check, parse

NAMES = sorted(path.stem for path in (ROOT / "tasks").glob("*.yaml"))
GOOD = {"columns": {"prompt": "q", "response": "a"}, "system_prompt": "Answer."}


@pytest.mark.parametrize("name", NAMES)
def test_a_task_and_its_sample_fit(name):
    loaded = task.load(name)
    module = importlib.import_module(loaded.sample)
    rows = module.rows()
    assert rows == module.rows(seed=0) != module.rows(seed=1)
    assert {split: len(part) for split, part in rows.items()} == module.SIZES
    for part in data.load(loaded, "sample").values():
        for row in part:
            check(parse(row["output"]), loaded.meaning)
            assert len(row["instruction"]) > 0


def test_the_second_task_has_its_own_columns_and_unseen_names():
    rows = importlib.import_module(task.load("trains").sample).rows()
    assert set(rows["train"][0]) == {"request", "call"}
    named = {
        s: {c for r in part for c in re.findall(r"(?:from|to)\[(.*?)\]", r["call"])}
        for s, part in rows.items()
    }
    assert not named["test"] & (named["train"] | named["val"])
    assert len({row["request"] for row in rows["train"]}) == len(rows["train"])


def test_columns_and_system_prompt_become_the_turns(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    line = io.BytesIO(b'{"q": "one", "a": "two", "more": 3}')
    [row] = data.parse(line, "train.jsonl", task.load(str(path)))
    assert row == {"instruction": "Answer.", "input": "one", "output": "two"}
    roles = [(turn["role"], turn["content"]) for turn in data.messages(row, [{"input": "x", "output": "y"}])]
    assert roles == [("system", "Answer."), ("user", "x"), ("assistant", "y"), ("user", "one")]


def test_a_task_without_rows_of_its_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(TutorialError, match=r"^DATA: the task 'mine' has no sample of its own; set DATA$"):
        data.load(task.load(str(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colums": {}}, "mine.yaml: colums: Extra inputs are not permitted"),
        ({"columns": {"prompt": "q"}}, "mine.yaml: columns.response: Field required"),
        ({"system_prompt": None}, "mine.yaml: task: Value error, set either system_prompt or columns.system"),
        ({"few_shot": 0}, "mine.yaml: few_shot: Input should be greater than 0"),
        (
            {"meaning": {"functions": [], "attributes": {"a": "text"}}},
            "mine.yaml: meaning.functions: List should",
        ),
        (
            {"meaning": {"functions": ["f"], "attributes": {}}},
            "mine.yaml: meaning.attributes: Dictionary should",
        ),
        ({"meaning": {"functions": ["f"], "attributes": {"a": []}}}, "mine.yaml: meaning.attributes.a"),
    ],
)
def test_a_bad_task_file_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(TutorialError) as error:
        task.load(str(path))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_task_that_is_not_there():
    with pytest.raises(TutorialError, match=r"^TASK=chess: No such file.*set TASK to one of trains, viggo"):
        task.load("chess")


def test_the_task_is_a_setting(monkeypatch):
    monkeypatch.setenv("TASK", "trains")
    assert settings.load(ROOT / "no.env").task == "trains"
