"""Rows on their way through batch inference, without an engine."""

import pyarrow
import pytest

from tutorial import batch, template

ROWS = [{"input": "a", "output": "x"}, {"input": "b", "output": "y"}]


def test_every_row_is_asked_of_every_system_under_a_number_of_its_own():
    systems = {"base": {"model": "m"}, "tuned": {"model": "n", "guided": True, "more": 1}}
    asked = batch.questions(ROWS, systems)
    assert [question["id"] for question in asked] == [0, 1, 2, 3]
    assert [(each["system"], each["model"], each["guided"], each["input"]) for each in asked] == [
        ("base", "m", False, "a"),
        ("base", "m", False, "b"),
        ("tuned", "n", True, "a"),
        ("tuned", "n", True, "b"),
    ]
    assert not any(each["few_shot"] for each in asked)
    assert asked[-1]["more"] == 1


def test_a_conversation_is_asked_as_it_was_trained():
    """Through Arrow, also if a block of rows has no history, and in the processes of Ray's workers."""
    history = [["one", "two"], ["three\n", "{}"]]
    rows = [row | {"instruction": "", "history": each} for row, each in zip(ROWS, (history, []), strict=True)]
    asked = batch.questions(rows, {"base": {"model": "m"}})
    for row, question in zip(rows, asked, strict=True):
        (block,) = pyarrow.Table.from_pylist([question]).to_pylist()
        assert template.turns(block) == template.turns(row)
    schemas = {pyarrow.Table.from_pylist([question]).schema for question in asked}
    assert len(schemas) == 1
    assert [turn["content"] for turn in template.turns(asked[0])][:4] == ["one", "two", "three\n", "{}"]


@pytest.mark.parametrize("bad", ["", " \n", None, 5])
def test_a_row_without_a_question_skips_the_engine(bad):
    prepare = batch.guarded(lambda row: {"messages": [row["input"]]})
    assert prepare({"input": "a"}) == {"messages": ["a"], "__inference_error__": ""}
    refused = prepare({"input": bad})
    assert refused == {"__inference_error__": f"input: a text is needed, not {bad!r}"}
    kept = batch.answer({"id": 3, "system": "base", "input": bad, "output": "x"} | refused)
    assert (kept["answer"], kept["target"], kept["error"]) == ("", "x", refused["__inference_error__"])


def test_what_is_kept_of_an_answer():
    row = {"id": 1, "system": "base", "input": "a", "output": "x", "generated_text": "y", "more": 1}
    kept = batch.answer(row | {"__inference_error__": ""})
    assert kept == {"id": 1, "system": "base", "input": "a", "target": "x", "answer": "y", "error": ""}
