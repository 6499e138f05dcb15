"""Every layout in every type of file is read to the same rows, and what cannot be read is one line."""

import csv
import datetime
import decimal
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from tests.test_data import one_line_error
from tutorial import data, layouts, tasks

COUNT = 40
ASKED = [f"What is {n} + 1?\nSay it, “exactly”; please | now" for n in range(COUNT)]
TALK = [{"instruction": "", "input": ASKED[n], "output": f'"{n + 1}", says she'} for n in range(COUNT)]
OLD = [["Is 1 < 2?", "yes, it\tis"], ["And 2 < 1?", "no"]]


def turns(row, names, roles):
    """A row as a conversation."""
    said = [("system", row["instruction"])] if row["instruction"] else []
    for question, answer in [*row.get("history", []), (row["input"], row["output"])]:
        said += [("user", question), ("assistant", answer)]
    return [{names[0]: roles.get(role, role), names[1]: text} for role, text in said]


def alpaca(row):
    first, _, rest = row["input"].partition("\n")
    found = {"instruction": first, "input": rest, "output": row["output"], "system": row["instruction"]}
    return found | {"history": row.get("history", [])}


LAYOUTS = {
    "prompt and response": lambda row: {
        "id": 7,
        "Question": row["input"],
        "answer": row["output"],
        "system": row["instruction"],
        "history": row.get("history", []),
    },
    "alpaca": alpaca,
    "ShareGPT conversations": lambda row: {
        "conversations": turns(row, ("from", "value"), {"user": "human", "assistant": "gpt"})
    },
    "OpenAI messages": lambda row: {"messages": turns(row, ("role", "content"), {})},
}
ROWS = [  # with and without a system turn, one turn and several
    row
    | ({"instruction": "Be brief."} if number % 2 else {})
    | ({"history": OLD[: number % 3]} if number % 3 else {})
    for number, row in enumerate(TALK)
]


def table(delimiter):
    def write(rows):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        for row in rows:  # a list in a cell is JSON
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
        return out.getvalue().encode()

    return write


def parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=7)
    return sink.getvalue()


TYPES = {
    "JSON lines": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "JSON array": lambda rows: json.dumps(rows, indent=1).encode(),
    "CSV": table(","),
    "CSV with ;": table(";"),
    "TSV": table("\t"),
    "Parquet": parquet,
}


def plain(source, **options):
    task = tasks.choose(None, str(source))
    return task, data.load(task, str(source), **options)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_layout_in_every_type_of_file(kind, layout, packed, tmp_path):
    """One file without a task file. Its name says nothing of its type."""
    content = TYPES[kind]([LAYOUTS[layout](row) for row in ROWS])
    (tmp_path / "mine.data").write_bytes(gzip.compress(content) if packed else content)
    task, rows = plain(tmp_path / "mine.data")
    assert (task.name, task.meaning) == ("mine", None)
    assert {split: len(part) for split, part in rows.items()} == {"train": 32, "val": 4, "test": 4}
    found = [row for part in rows.values() for row in part]
    wanted = [row | {"history": row.get("history", [])} for row in ROWS]
    assert sorted(found, key=lambda row: ASKED.index(row["input"])) == wanted
    shown = data.summary(rows)
    kind = "CSV" if kind in {"TSV", "CSV with ;"} and len(LAYOUTS[layout](ROWS[0])) == 1 else kind
    assert [shown[each]["val"] for each in ("file", "type", "layout", "read")] == [
        "mine.data",
        kind,
        layout,
        4,
    ]


def read(content, tmp_path, rejected=None, name="mine.jsonl"):
    (tmp_path / name).write_bytes(content)
    return plain(tmp_path / name, rejected=rejected)


def test_the_columns_that_are_taken_are_shown(tmp_path):
    _, rows = read(TYPES["CSV"]([{"n": 1, "Query": text, "Target": "x"} for text in ASKED]), tmp_path)
    assert rows["train"].found["columns"] == "Query → prompt, Target → response"


NESTED = {"name": "Ö", "items": [{"n": 2, "price": 1.5, "size": None}], "takeaway": False}


@pytest.mark.parametrize("kind", ["JSON lines", "JSON array", "Parquet"])
def test_an_answer_that_is_an_object_is_taken_as_json(kind, tmp_path, capsys):
    """With its keys in their order. What is asked must be a text still."""
    rows = [{"prompt": text, "output": NESTED | {"number": n}} for n, text in enumerate(ASKED)]
    _, found = read(TYPES[kind](rows), tmp_path)
    texts = {row["output"] for part in found.values() for row in part}
    assert texts == {json.dumps(NESTED | {"number": n}, ensure_ascii=False) for n in range(COUNT)}
    swapped = [{"prompt": row["output"], "output": row["prompt"]} for row in rows]
    one_line_error("mine.jsonl, ", read, TYPES[kind](swapped), tmp_path)


def test_values_of_a_table_in_an_object_that_json_lacks(tmp_path):
    day = {"day": datetime.date(2024, 1, 31), "price": decimal.Decimal("1.50")}
    _, found = read(parquet([{"prompt": text, "output": day} for text in ASKED]), tmp_path)
    assert {row["output"] for row in found["train"]} == {'{"day": "2024-01-31", "price": 1.5}'}


HOW = "write a yaml file with the line `columns: {prompt: NAME, response: NAME}` and set TASK to its path"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["id", "body", "verdict"], f"the columns 'id', 'body', 'verdict' do not say {'what is'}"),
        (["prompt"], "the columns 'prompt' do not say what is prompt and response"),
        (
            ["messages", "prompt", "response"],
            "the columns 'messages', 'prompt', 'response' can be read as OpenAI",
        ),
        (
            ["messages", "conversations"],
            "the columns 'messages', 'conversations' can be read as OpenAI messages",
        ),
        (
            ["instruction", "output", "prompt", "response"],
            "the columns 'instruction', 'output', 'prompt', 'resp",
        ),
        (
            ["question", "text", "answer"],
            "the columns 'question', 'text', 'answer' can be read as prompt and resp",
        ),
        (
            ["question", "answer", "label"],
            "the columns 'question', 'answer', 'label' can be read as prompt and",
        ),
    ],
)
def test_columns_that_do_not_say_what_they_are(names, message, tmp_path):
    content = TYPES["CSV"]([dict.fromkeys(names, "one")] * 3)
    said = one_line_error(f"mine.csv: {message}", read, content, tmp_path, name="mine.csv")
    assert HOW in said
    # Also at the start.
    assert one_line_error("mine.csv: ", tasks.choose, None, str(tmp_path / "mine.csv")) == said
    # And that is how to say it.
    (tmp_path / "mine.yaml").write_text(f"columns: {{prompt: {names[0]}, response: {names[-1]}}}\n")
    with pytest.raises(Exception, match="too few different questions"):
        data.load(tasks.load(str(tmp_path / "mine.yaml")), str(tmp_path / "mine.csv"))


@pytest.mark.parametrize(
    "names",
    [
        ["prompt", "prompt_id", "messages"],  # of a data set with one layout
        ["instruction", "context", "response", "category"],
        ["instruction", "input", "output", "text"],
        ["input", "output"],
        ["sentence", "label", "idx"],
        ["", "text", "label"],
    ],
)
def test_columns_that_say_what_they_are(names):
    assert layouts.find(names)


def test_two_layouts_in_one_file(tmp_path):
    rows = [LAYOUTS["alpaca"](ROWS[0]), LAYOUTS["OpenAI messages"](ROWS[1])]
    one_line_error(
        "mine.jsonl: the columns 'instruction', 'input', ", read, TYPES["JSON lines"](rows), tmp_path
    )


def talk(*roles, **more):
    return [{"role": role, "content": f"text {number}"} | more for number, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (talk("user"), "column 'messages': no assistant turn"),
        (talk("system"), "column 'messages': no assistant turn"),
        ([], "column 'messages': no assistant turn"),
        (talk("user", "user", "assistant"), "column 'messages', turn 2: two user turns in a row"),
        (talk("user", "assistant", "assistant"), "column 'messages', turn 3: two assistant turns in a row"),
        (talk("user", "assistant", "user"), "column 'messages': the last turn is the user's"),
        (talk("assistant", "user", "assistant"), "column 'messages', turn 1: the user must begin"),
        (
            talk("user", "system", "assistant"),
            "column 'messages', turn 2: the system's turn must be the first",
        ),
        (talk("user", "tool", "assistant"), "column 'messages', turn 2: tool calls cannot be trained here"),
        (talk("user", "assistant", tool_calls=[{"id": "1"}]), "column 'messages', turn 1: tool calls cannot"),
        (talk("user", "narrator"), "column 'messages', turn 2: the role 'narrator' is none of"),
        ([{"role": ["user"]}], "column 'messages', turn 1: the role \"['user']\" is none of"),
        (
            talk("user", "assistant", content=[{"type": "text"}]),
            "column 'messages', turn 1: a text is needed",
        ),
        (
            talk("user", "assistant", content=" "),
            "column 'messages', turn 1: a text is needed, and this one is",
        ),
        (["Hello"], "column 'messages', turn 1: an object with role and content is needed"),
        ("Hello", "column 'messages': a list is needed, and this text is not one in JSON"),
        ({"role": "user"}, "column 'messages': a list is needed"),
        (None, "column 'messages': a list is needed"),
    ],
)
@pytest.mark.parametrize("kind", ["JSON lines", "JSON array"])
def test_a_conversation_that_cannot_be_trained(kind, turns, message, tmp_path):
    rows = [LAYOUTS["OpenAI messages"](row) for row in ROWS]
    content = TYPES[kind]([*rows[:9], {"messages": turns}, *rows[9:]])
    place = "line 10" if kind == "JSON lines" else "row 10"
    one_line_error(f"mine.jsonl, {place}: {message}", read, content, tmp_path)
    rejected = tmp_path / "rejected.jsonl"
    _, found = read(content, tmp_path, rejected)
    assert sum(map(len, found.values())) == COUNT
    (bad,) = map(json.loads, rejected.read_text().splitlines())
    assert json.loads(bad["text"]) == {"messages": turns}
    assert bad[place.split(maxsplit=1)[0]] == 10


def test_tools_beside_a_conversation(tmp_path):
    row = LAYOUTS["ShareGPT conversations"](ROWS[0])
    rows = [row | {"tools": ""}, row | {"tools": "[]"}, row | {"tools": '[{"name": "f"}]'}]
    content = TYPES["JSON lines"](rows)
    one_line_error("mine.jsonl, line 3: column 'tools': tool calls cannot", read, content, tmp_path)


@pytest.mark.parametrize("pair", [["one"], "one", ["one", "two", "three"], ["one", None], [["one"], "two"]])
def test_a_history_that_is_not_of_pairs(pair, tmp_path):
    content = TYPES["JSON lines"]([LAYOUTS["alpaca"](ROWS[0]) | {"history": [["a", "b"], pair]}])
    one_line_error("mine.jsonl, line 1: column 'history', pair 2: a ", read, content, tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (-7, "-7"),
        (12345678901234567890, "12345678901234567890"),
        (decimal.Decimal("4.50"), "4.50"),
        (0.1, None),
        (1e300, None),
        (True, None),
        (None, None),
    ],
)
@pytest.mark.parametrize("kind", ["JSON lines", "Parquet"])
def test_numbers_are_text_if_they_are_exact(kind, value, text, tmp_path):
    rows = [{"question": each, "answer": value} for each in ASKED]
    if kind == "JSON lines":
        content = json.dumps({"question": "?", "answer": "#"}).encode() + b"\n"
        content = b"".join(
            content.replace(b"?", str(n).encode()).replace(
                b'"#"', json.dumps(value, default=str).strip('"').encode()
            )
            for n in range(COUNT)
        )
        if value == 0.1:  # the digits of the file are known
            text = "0.1"
    elif isinstance(value, int) and value > 2**63:
        pytest.skip("Parquet has no such number")
    else:
        content = parquet(rows)
    if text is None:
        one_line_error("mine.jsonl, ", read, content, tmp_path)
        with pytest.raises(
            Exception, match=r"column 'answer': a text is needed, and this is (the|bool|empty)"
        ):
            read(content, tmp_path)
        return
    _, found = read(content, tmp_path)
    assert {row["output"] for part in found.values() for row in part} == {text}


def test_a_system_prompt_of_the_task_is_for_rows_without_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("system_prompt: Answer.\n")
    (tmp_path / "mine.json").write_bytes(
        TYPES["JSON array"]([LAYOUTS["OpenAI messages"](row) for row in ROWS])
    )
    rows = data.load(tasks.load(str(tmp_path / "mine.yaml")), str(tmp_path / "mine.json"))
    assert {row["instruction"] for part in rows.values() for row in part} == {"Answer.", "Be brief."}
