"""Tables and pictures: texts of any kind are shown as they are, each kind of task shows what it has."""

import re
import subprocess
import sys
from base64 import b64decode
from html import unescape
from io import BytesIO

import mistune
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from tests.conftest import ROOT
from tests.test_score import ANSWERS, TARGETS, TASK
from tutorial import plots, score

HTML = mistune.create_markdown(plugins=["table"])


def cells(markdown):
    """Of a Markdown table, as a reader sees them."""
    rows = re.findall("<tr>(.*?)</tr>", HTML(markdown.data), flags=re.DOTALL)
    return [
        [unescape(re.sub("</?strong>", "", cell)) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_telling_answers_show_what_differs():
    inputs = [f"sentence {i}" for i in range(8)]
    shown = plots.differences(score.telling(inputs, ANSWERS, TARGETS, TASK)).data
    assert [re.split(r" *\| *", line.strip("| ")) for line in shown.splitlines()[2:]] == [
        ["does not parse", "sentence 4", "a(**x[3])**", "a(**x[3**"],
        ["wrong function", "sentence 3", "**b**(x[2], **z[no]**)", "**a**(x[2])"],
        ["missing attribute", "sentence 5", "a(x[4], **z[yes]**)", "a(x[4])"],
        ["invented attribute", "sentence 6", "a(x[5])", "a(x[5], **z[]**)"],
        ["wrong value", "sentence 2", "b(**z[yes]**)", "b(**z[no]**)"],
        ["order only", "sentence 1", "a(x[1], **y[p, q]**)", "a(**y[q, p]**, x[1])"],
    ]


def test_attributes_of_any_name_are_whole_where_they_differ():
    target, answer = "a(customer rating[5 out of 5], Größe[S])", "a(customer rating[low], Größe[S])"
    found = pd.DataFrame(
        [["wrong value", "s", target, answer]], columns=["kind", "input", "target", "answer"]
    )
    shown = plots.differences(found).data.splitlines()[2]
    assert "| a(**customer rating[5 out of 5]**, Größe[S]) | a(**customer rating[low]**, Größe[S]) |" in shown


@pytest.mark.parametrize(
    "text",
    ["<b>*x*</b>", "a | b", "`code` _x_ 1_000", r"\* [x](y)", "$1 ~~2~~", "a &lt; b &amp; c", "x" * 300],
)
def test_a_text_is_shown_as_it_is_and_not_as_markdown(text):
    """In an engine that reads Markdown as the page does; the marks around what differs aside."""
    table = score.telling([text], [text], ["a(x[1])"], TASK)
    assert cells(plots.table(table, longest=400))[1] == ["does not parse", text, "a(x[1])", text]
    assert cells(plots.differences(table))[1] == ["does not parse", text, "a(x[1])", text]


def test_where_no_answer_is_wrong_there_is_no_empty_table():
    assert plots.differences(score.telling(TARGETS, TARGETS, TARGETS, TASK)).data == "No answer is wrong."


def test_kinds_of_mistakes_side_by_side():
    found = {
        "base": score.count_kinds(ANSWERS, TARGETS, TASK),
        "tuned": score.count_kinds(TARGETS, TARGETS, TASK),
    }
    shown = cells(plots.table(pd.DataFrame(found), index=True))
    assert shown == [["kind", "base", "tuned"], *([kind, "1", "0"] for kind in TASK.mistaken)]


def test_a_long_text_is_cut_and_says_so():
    table = pd.DataFrame({"text": ["x" * 300, "two words"]})
    assert cells(plots.table(table, longest=5)) == [["text"], ["xxxxx …"], ["two w …"]]


def test_labels_of_any_kind_are_shown_as_they_are():
    names = ["customer rating", "Größe", "a|b", "*x*", "_y_", "<i>"]
    table = pd.DataFrame({"x | y": range(6)}, index=pd.Index(names, name="attribute"))
    shown = cells(plots.table(table, index=True))
    assert shown == [["attribute", "x | y"], *([name, str(i)] for i, name in enumerate(names))]


def test_an_interval_from_few_meanings_says_so():
    targets = [f"a(x[{i}])" for i in range(score.FEW)]
    few, many = (
        TASK.scores({"base": pd.DataFrame({"input": "s", "answer": said, "target": meant})})
        for said, meant in ((ANSWERS, TARGETS), (targets, targets))
    )
    names, *rows = cells(plots.scores(pd.concat([few, many])))
    shown = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    assert shown["exact match"] == ["0.250 (0.02 to 0.70; 6 meanings)", "1.000 (0.83 to 1.00)"]
    assert shown["attribute F1"] == ["0.727", "1.000"]  # no share, so no interval


def test_the_style_is_found_from_any_folder(tmp_path):
    code = "from tutorial import plots; print(plots.BLUE, plots.INK, plots.plt.rcParams['axes.spines.top'])"
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout.lower().split() == ["#0072b2", "#1f2933", "false"]


def test_a_picture_has_two_pixels_for_each_that_it_takes_and_says_what_it_shows():
    log = pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "eval_loss": [None, None, 0.7]})
    shown = plots.loss_curve(log, {"killed": {"step": 2}, "resumed": {"step": 2}})
    data, about = shown._repr_mimebundle_()
    size = Image.open(BytesIO(b64decode(data["image/png"]))).size
    assert (about["image/png"]["width"], about["image/png"]["height"]) == (size[0] // 2, size[1] // 2)
    drawn = {text.get_text().split("\n")[0] for text in shown.figure.findobj(Text)}
    assert {"training", "validation", " worker killed at step 2"} <= drawn
    assert "training from 2.00 to 0.50, validation from 0.70 to 0.70" in about["image/png"]["alt"]
