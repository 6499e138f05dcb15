"""Tables and pictures: texts of any kind are shown as they are, each kind of task shows what it has."""

import re
import subprocess
import sys
import warnings
from html import unescape

import mistune
import pandas as pd
import pytest
from IPython.display import Markdown

from tests.conftest import ROOT
from tests.test_score import ANSWERS, TARGETS, TASK
from tutorial import plots, score
from tutorial.meaning import Description

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
    assert shown == [["kind", "base", "tuned"], *([kind, "1", "0"] for kind in score.KINDS)]


def test_a_long_text_is_cut_and_says_so():
    table = pd.DataFrame({"text": ["x" * 300, "two words"]})
    assert cells(plots.table(table, longest=5)) == [["text"], ["xxxxx …"], ["two w …"]]


def test_labels_of_any_kind_are_shown_as_they_are():
    names = ["customer rating", "Größe", "a|b", "*x*", "_y_", "<i>"]
    table = pd.DataFrame({"x | y": range(6)}, index=pd.Index(names, name="attribute"))
    shown = cells(plots.table(table, index=True))
    assert shown == [["attribute", "x | y"], *([name, str(i)] for i, name in enumerate(names))]


def test_functions_and_attributes_of_any_name_are_plotted():
    names = ["größer als", "a|b", "$x$ {", "_hidden", r"\frac", "n" * 200]
    task = Description(functions=names, attributes={"customer rating": "text", "a|b*": "text"})
    targets = [f"{name}(customer rating[1], a|b*[2])" for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = plots.by_function({"base": score.by_function(targets, targets, task)})
        _, metadata = picture._repr_mimebundle_()
    labels = [label.get_text().replace(r"\$", "$") for label in picture.figure.axes[0].get_yticklabels()]
    assert labels == [f"{name[:40]}{' …' if len(name) > 40 else ''} (1 rows, 1 meanings)" for name in names]
    assert metadata["image/png"]["alt"] == picture.alt
    assert all(name in picture.alt for name in names)
    shown = cells(plots.by_attribute(score.by_attribute(targets, targets, task)))
    assert [row[0] for row in shown] == ["attribute", "customer rating", "a|b*"]


def test_a_task_without_a_grammar_shows_a_sentence_and_no_empty_table():
    answers, targets = ["Lyon", "Paris"], ["Rome", "Paris"]
    for shown in (
        plots.by_function({"base": score.by_function(answers, targets, None)}),
        plots.by_attribute(score.by_attribute(answers, targets, None)),
    ):
        assert isinstance(shown, Markdown)
        assert shown.data == plots.NO_GRAMMAR
        assert "|" not in shown.data
    [_, row] = cells(plots.scores({"base": score.scores(answers, targets, None)}))
    assert row[0] == "exact match"


def test_a_task_with_a_grammar_has_a_picture_and_a_table():
    picture = plots.by_function(
        {
            "base": score.by_function(ANSWERS, TARGETS, TASK),
            "tuned": score.by_function(TARGETS, TARGETS, TASK),
        }
    )
    assert picture.alt.endswith("base: a 0.20, b 0.33; tuned: a 1.00, b 1.00.")
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert labels == ["a (5 rows, 4 meanings)", "b (3 rows, 3 meanings)"]
    bars = picture.figure.axes[0].patches
    assert [round(bar.get_width(), 2) for bar in bars] == [0.2, 0.33, 1, 1]
    assert cells(plots.by_attribute(score.by_attribute(ANSWERS, TARGETS, TASK)))[1:] == [
        ["x", "6", "1.00", "0.83", "0.91"],
        ["y", "3", "1.00", "1.00", "1.00"],
        ["z", "3", "0.00", "0.00", "0.00"],
    ]


def test_an_interval_from_few_meanings_says_so():
    few = score.scores(ANSWERS, TARGETS, TASK)
    targets = [f"a(x[{i}])" for i in range(score.FEW)]
    many = score.scores(targets, targets, TASK)
    shown = {row[0]: row[1:] for row in cells(plots.scores({"few": few, "many": many}))}
    assert shown["exact match"] == ["0.250 (0.02 to 0.70; 6 meanings)", "1.000 (0.83 to 1.00)"]
    assert shown["attribute F1"] == ["0.727", "1.000"]  # no share, so no interval
    gains = pd.DataFrame({"one over other": score.gain(TARGETS, ANSWERS, TARGETS)}).T
    [_, row] = cells(plots.scores({"exact match": gains}, sign="+"))
    assert re.fullmatch(r"\+0\.750 \(\+0\.\d\d to \+0\.\d\d; 6 meanings\)", row[1])


def test_the_style_is_found_from_any_folder(tmp_path):
    code = "from tutorial import plots; print(plots.BLUE, plots.INK, plots.plt.rcParams['axes.spines.top'])"
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout.lower().split() == ["#0072b2", "#1f2933", "false"]
