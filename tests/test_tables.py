"""Tables as people have them: nothing is lost, and what is wrong is named by its line."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from tests.test_data import one_line_error
from tutorial import TutorialError, data, sources, tasks

PLAIN = tasks.Task.plain("mine")


def read(content, rejected=None, task=PLAIN):
    stream = io.BufferedReader(io.BytesIO(content), sources.BUFFER)
    return [(row["input"], row["output"]) for row in data.parse(stream, "mine.csv", task, rejected)]


@pytest.mark.parametrize(
    "content",
    [
        b"prompt,response\na,b\nc,d\n",
        b"prompt;response\na;b\nc;d\n",
        b"prompt\tresponse\r\na\tb\r\nc\td",
        b"prompt|response\na|b\nc|d\n",
        b"\xef\xbb\xbfprompt,response\r\na,b\r\nc,d\r\n",
        b'"prompt","response"\n"a","b"\n"c","d"\n',
        b"\n\nprompt,response\n\na,b\n\n,\nc,d\n\n",  # blank lines, and a row of empty cells
        b"id,prompt,,response,\n1,a,,b,\n2,c,,d,\n",  # columns without a name
        b",,\nprompt,response,\na,b,\nc,d,\n",  # a row of empty cells before the header
        b" Prompt ,RESPONSE\na,b\nc,d\n",
        b"response,prompt,note\nb,a,{x}\nd,c,[y]\n",
    ],
)
def test_delimiters_quotes_and_blank_lines(content):
    assert read(content) == [("a", "b"), ("c", "d")]


def test_fields_hold_what_they_hold():
    """Line breaks, delimiters, quotes, spaces, and texts that look like numbers or like nothing."""
    cells = [
        ("a\nb\r\nc", 'x "y", z'),
        (" a; ", "007"),
        ("NULL", "NaN"),
        ("{}", "1e5"),
        ("[", "caf\u00e9\u2028"),
    ]
    rows = "".join('"{}","{}"\n'.format(*(cell.replace('"', '""') for cell in pair)) for pair in cells)
    assert read(b"prompt,response\n" + rows.encode()) == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,prompt,response\na,b,c\n", "mine.csv, line 1: the column 'prompt' is there twice"),
        (b"prompt,response\na,b\nprompt,response\nc,d\n", "mine.csv, line 3: this is the header again"),
        (b"prompt,response\na,b\nc\n", "mine.csv, line 3: it has 1 fields, and the header 2"),
        (b"prompt,response\na,b\nc,d,e\n", "mine.csv, line 3: it has 3 fields, and the header 2"),
        (b'prompt,response\n"a\nb",c\nd,\n', "mine.csv, line 4: column 'response': a text is needed"),
        (b'prompt,response\na,b\n"c"d,e\n', "mine.csv, line 3: not CSV (',' expected after '\"'"),
        (b'prompt,response\na,b\n"c,d\ne,f\n', "mine.csv, line 3: not CSV (unexpected end of data"),
        (b"prompt;response\na;b\ncaf\xe9;d\n", "mine.csv, line 3: not UTF-8; save the file as UTF-8"),
        (b"question;r\xe9ponse\na;b\n", "mine.csv, line 1: not UTF-8; save the file as UTF-8"),
        (b"sep=;\nprompt;response\na;b\nc\n", "mine.csv, line 4: it has 1 fields, and the header 2"),
        (b"prompt,response\n", "mine.csv: the split is empty"),
        (b"a,b\nc,d\n", "mine.csv: the columns 'a', 'b' do not say what is prompt and response"),
        (b"", "mine.csv: the split is empty"),
        (b"[]", "mine.csv: the split is empty"),
        (b"[1, 2]", "mine.csv, row 1: an object with columns is needed"),
        (b'[{"prompt": "a", "response": "b"},\n{"prompt": "c"]', "mine.csv: not a JSON array (Expecting ','"),
        (b'[{"prompt": "a", "response": "b"}', "mine.csv: not a JSON array (Expecting ',' delimiter: line 1"),
        (
            b'[{"prompt": "a", "response": "caf\xe9"}]',
            "mine.csv: not a JSON array ('utf-8' codec can't decode",
        ),
        (b"[" * 10**6, "mine.csv: not a JSON array ("),
        (
            b'[{"prompt": "a", "response": "b", "prompt": "c"}]',
            "mine.csv, row 1: column 'prompt': it is given tw",
        ),
        (b'[{"prompt": "a", "response": NaN}]', "mine.csv, row 1: column 'response': nan is not JSON"),
        (
            b'{"messages": [{"role": "user", "role": "a"}]}\n',
            "mine.csv, line 1: column 'role': it is given twice",
        ),
        (b'{"a": [[{"b": 1, "b": 2}]]}\n', "mine.csv, line 1: column 'b': it is given twice"),
        (b'{"prompt": "a", "response": %s}\n' % (b"7" * 5000), "mine.csv, line 1: Exceeds the limit (4300"),
    ],
)
def test_bad_tables_and_arrays_are_named_in_one_line(content, message):
    one_line_error(message, read, content)


def test_bad_rows_of_a_table_are_set_aside_whole(tmp_path):
    rejected = tmp_path / "rejected.jsonl"
    content = b'prompt,response\na,b\n"c\nd",\nprompt,response\n"x"y,z\nf\xe9,g\nh,i\n"j,k\nl,m\n'
    assert read(content, rejected) == [("a", "b"), ("h", "i")]
    found = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [(row["line"], row["text"]) for row in found] == [
        (3, '"c\nd",'),
        (5, "prompt,response"),
        (6, '"x"y,z'),
        (7, "f\\xe9,g"),
        (9, '"j,k\nl,m'),  # a quote that nothing closes takes the rest of the file
    ]


def test_bad_rows_of_an_array_are_set_aside_whole(tmp_path):
    rejected = tmp_path / "rejected.jsonl"
    bad = ['{"prompt": "a", "prompt": "b"}', '{"prompt": "\\ud83d", "response": 7.50}', "[1]", "null"]
    content = '[{"prompt": "a", "response": "b"}, ' + ", ".join(bad) + "]"
    assert read(content.encode(), rejected) == [("a", "b")]
    found = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [row["row"] for row in found] == [2, 3, 4, 5]
    assert [json.loads(row["text"]) for row in found] == [
        [["prompt", "a"], ["prompt", "b"]],
        {"prompt": "\ud83d", "response": "7.50"},
        [1],
        None,
    ]


def parquet(table):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def test_bad_rows_of_parquet_are_set_aside_whole(tmp_path):
    """A nested list is no text."""
    table = pyarrow.table({"prompt": ["a", "b", None], "response": [["x", ["y"][0]], ["z"], []]})
    rejected = tmp_path / "rejected.jsonl"
    one_line_error(
        "mine.csv, row 1: column 'response': a text is needed, and this is list", read, parquet(table)
    )
    with pytest.raises(
        TutorialError, match=r"no row is good, all are in .*; the first: mine.csv, row 1: column"
    ):
        read(parquet(table), rejected)
    found = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert json.loads(found[0]["text"]) == {"prompt": "a", "response": ["x", "y"]}
    assert [row["row"] for row in found] == [1, 2, 3]


def test_a_parquet_file_with_a_column_twice_or_cut_off():
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "response", "prompt"])
    one_line_error("mine.csv: the column 'prompt' is there twice", read, parquet(table))
    with pytest.raises(sources.UNREADABLE):
        read(parquet(table)[:-20])


def test_a_field_longer_than_can_be_held():
    one_line_error(
        "mine.csv, line 2: ", read, b"prompt,response\n" + b"a" * 2**25 + b"," + b"b" * (2**25 + 9) + b"\n"
    )
    assert read(b"prompt,response\n" + b"a" * 2**20 + b",b\n")[0][1] == "b"
