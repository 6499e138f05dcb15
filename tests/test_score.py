import re
from html import unescape

import mistune
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tutorial import mistakes, plots, score
from tutorial.meaning import Description

TASK = Description(functions=["a", "b"], attributes={"x": "text", "y": "list", "z": ["yes", "no"]})

# Worked by hand. said, meant and hits count the answer's attributes, the target's, and those right in both.
#    target             answer                kind                said meant hits  function  same  exact
KNOWN = [
    ("a(x[1], y[p, q])", "a(x[1], y[p, q])"),  # -                  2    2     2      1       1      1
    ("a(x[1], y[p, q])", "a(y[q, p], x[1])"),  # order only         2    2     2      1       1      0
    ("b(z[yes])", "b(z[no])"),  # .              wrong value        1    1     0      1       0      0
    ("b(x[2], z[no])", "a(x[2])"),  # .          wrong function     1    2     1      0       0      0
    ("a(x[3])", "a(x[3"),  # .                   does not parse     0    1     0      0       0      0
    ("a(x[4], z[yes])", "a(x[4])"),  # .         missing attribute  1    2     1      1       0      0
    ("a(x[5])", "a(x[5], z[])"),  # .            invented           2    1     1      1       0      0
    ("b(y[])", " b(y[])\n"),  # .                -                  1    1     1      1       1      1
]  #                                             sums              10   12     8      6       3      2
TARGETS, ANSWERS = ([pair[side] for pair in KNOWN] for side in (0, 1))


def test_known_answers():
    targets = ["a(x[1])", "b(y[2], z[3])", "c()", "d()"]
    answers = ["a(x[1])", "b(z[3], y[2])", " c()\n", "D()"]
    assert score.exact_match(answers, targets) == 0.5
    assert score.exact_match(targets, targets) == 1
    assert score.exact_match(["", "", "", ""], targets) == 0


def test_known_scores():
    assert score.scores(ANSWERS, TARGETS, TASK)["value"].to_dict() == pytest.approx(
        {
            "exact match": 2 / 8,
            "canonical match": 3 / 8,
            "function accuracy": 6 / 8,
            "attribute precision": 8 / 10,
            "attribute recall": 8 / 12,
            "attribute F1": 2 * 8 / (10 + 12),
            "answers that parse": 7 / 8,
            "valid answers": 7 / 8,
        }
    )
    assert set(score.scores(TARGETS, TARGETS, TASK).to_numpy().flat) == {1}
    [(metric, *_)] = score.scores(ANSWERS, TARGETS, None).itertuples()
    assert metric == "exact match"


def test_a_known_gain():
    # Right are rows 1 and 8 of the eight; of the targets themselves all are.
    assert score.gain(TARGETS, ANSWERS, TARGETS)["value"] == 6 / 8
    assert score.gain(ANSWERS, TARGETS, TARGETS)["value"] == -6 / 8
    assert score.gain(ANSWERS, ANSWERS, TARGETS) == {"value": 0, "low": 0, "high": 0}


def test_known_scores_of_each_function():
    table = score.by_function(ANSWERS, TARGETS, TASK)
    assert table["rows"].to_dict() == {"a": 5, "b": 3}
    assert table["exact match"].to_dict() == pytest.approx({"a": 1 / 5, "b": 1 / 3})
    assert ((table["low"] <= table["exact match"]) & (table["exact match"] <= table["high"])).all()


def test_known_scores_of_each_attribute():
    # x: said in rows 1 2 4 6 7, meant in 1 2 4 5 6 7, right in 5; y: 1 2 8, 1 2 8, 3; z: 3 7, 3 4 6, none
    table = score.by_attribute(ANSWERS, TARGETS, TASK)
    assert table["support"].to_dict() == {"x": 6, "y": 3, "z": 3}
    assert table["precision"].to_dict() == pytest.approx({"x": 1, "y": 1, "z": 0})
    assert table["recall"].to_dict() == pytest.approx({"x": 5 / 6, "y": 1, "z": 0})
    assert table["F1"].to_dict() == pytest.approx({"x": 10 / 11, "y": 1, "z": 0})
    assert ((table["low"] <= table["F1"]) & (table["F1"] <= table["high"])).all()
    assert table.loc["x", "low"] < table.loc["x", "F1"]


def test_known_errors():
    assert mistakes.count(ANSWERS, TARGETS, TASK).to_dict() == dict.fromkeys(mistakes.KINDS, 1)
    assert mistakes.count(TARGETS, TARGETS, TASK).to_dict() == dict.fromkeys(mistakes.KINDS, 0)


def test_plain_text_has_one_kind_of_error():
    answers, targets = ["Lyon", "Paris "], ["Rome", "Paris"]
    assert mistakes.count(answers, targets, None).to_dict() == {mistakes.PLAIN: 1}
    [row] = mistakes.telling(["one", "two"], answers, targets, None).itertuples(index=False)
    assert tuple(row) == (mistakes.PLAIN, "one", "Rome", "Lyon")
    assert score.by_function(answers, targets, None)["exact match"].to_dict() == {"all": 0.5}


def test_of_several_errors_the_first_one_counts():
    target = "a(x[1], y[p])"
    answers = ["b(z[no])", "a(z[no], x[2])", "a(z[no], x[2], y[p])", "a(y[q], x[1])", "a(y[p], x[1])"]
    kinds = [mistakes.count([answer], [target], TASK).idxmax() for answer in answers]
    assert kinds == list(mistakes.KINDS[1:])


def test_telling_answers_show_what_differs():
    inputs = [f"sentence {i}" for i in range(8)]
    shown = plots.differences(mistakes.telling(inputs, ANSWERS, TARGETS, TASK)).data
    assert [re.split(r" *\| *", line.strip("| ")) for line in shown.splitlines()[2:]] == [
        ["does not parse", "sentence 4", "a(**x[3])**", "a(**x[3**"],
        ["wrong function", "sentence 3", "**b**(x[2], **z[no]**)", "**a**(x[2])"],
        ["missing attribute", "sentence 5", "a(x[4], **z[yes]**)", "a(x[4])"],
        ["invented attribute", "sentence 6", "a(x[5])", "a(x[5], **z[]**)"],
        ["wrong value", "sentence 2", "b(**z[yes]**)", "b(**z[no]**)"],
        ["order only", "sentence 1", "a(x[1], **y[p, q]**)", "a(**y[q, p]**, x[1])"],
    ]


@pytest.mark.parametrize("answer", ["<b>*x*</b>", "a | b", "`code` _x_ 1_000", r"\* [x](y)", "$1 ~~2~~"])
def test_an_answer_is_shown_as_it_is_and_not_as_markdown(answer):
    """The marks around it aside, in an engine that reads Markdown as the page does."""
    table = mistakes.telling(["s"], [answer], ["a(x[1])"], TASK)
    for markdown in (plots.differences(table).data, plots.table(table, longest=99).data):
        html = mistune.html(markdown)
        assert answer in unescape(re.sub("</?(strong|table|thead|tbody|tr|th|td)[^>]*>", "", html))


def test_telling_answers_take_turns_over_the_kinds():
    targets = ["b(z[yes])", "a(x[22])", "a(x[1])", "a(x[333])", "a(x[1])"]
    answers = ["b(z[no])", "", "", "", "a(x[1])"]
    table = mistakes.telling(list("vwxyz"), answers, targets, TASK, most=3)
    assert list(zip(table["kind"], table["input"], strict=True)) == [
        ("does not parse", "x"),  # the most frequent kind, its shortest target
        ("wrong value", "v"),
        ("does not parse", "w"),
    ]
    assert list(mistakes.telling(["x"], ["a(x[1])"], ["a(x[1])"], TASK)) == [
        "kind",
        "input",
        "target",
        "answer",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "nonsense",
        "[",
        "a(x[1]",
        "a(x[1])a(x[1])",
        "a(x[1]) a(x[1])",
        "a(x[1])\n\nSentence: next",
        "a(" + "x[1], " * 5000,
        "\ud800\x00**|",
    ],
)
def test_an_answer_that_does_not_parse_scores_nothing(answer):
    target = "a(x[1])"
    assert not score.scores([answer], [target], TASK).to_numpy().any()
    assert score.by_attribute([answer], [target], TASK).loc["x"].tolist() == [1, 0, 0, 0, 0, 0]
    assert mistakes.count([answer], [target], TASK)["does not parse"] == 1
    assert len(mistakes.telling(["Is it fun?"], [answer], [target], TASK)) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "right"),
    [  # and which of function, precision and recall
        ("c(x[1])", "wrong function", (0, 1, 1)),
        ("a(w[1])", "missing attribute", (1, 0, 0)),
        ("a(x[1], w[1])", "invented attribute", (1, 1 / 2, 1)),
        ("a(x[1], x[1])", "invented attribute", (1, 1 / 2, 1)),
        ("a(x[1], z[maybe])", "invented attribute", (1, 1 / 2, 1)),
    ],
)
def test_an_answer_that_the_task_does_not_allow_keeps_what_is_right_in_it(answer, kind, right):
    found = score.scores([answer], ["a(x[1])"], TASK)["value"]
    assert tuple(found[["function accuracy", "attribute precision", "attribute recall"]]) == right
    assert found[["exact match", "canonical match", "valid answers"]].tolist() == [0, 0, 0]
    assert found["answers that parse"] == 1
    assert mistakes.kinds([answer], ["a(x[1])"], TASK).tolist() == [kind]


def calls(inputs, answers, targets):
    return [
        lambda: score.exact_match(answers, targets),
        lambda: score.scores(answers, targets, TASK),
        lambda: score.scores(answers, targets, None),
        lambda: score.by_function(answers, targets, TASK),
        lambda: score.by_attribute(answers, targets, TASK),
        lambda: mistakes.count(answers, targets, TASK),
        lambda: mistakes.telling(inputs, answers, targets, TASK),
    ]


@pytest.mark.parametrize(("answers", "targets"), [(["a"], ["a", "b"]), ([], [])])
def test_a_lost_row_is_an_error(answers, targets):
    for call in calls(targets, answers, targets):
        with pytest.raises(ValueError, match="answers for"):
            call()
    with pytest.raises(ValueError, match="2 inputs for 1 targets"):
        mistakes.telling(["s", "t"], ["a(x[1])"], ["a(x[1])"], TASK)


@pytest.mark.parametrize("target", ["a(x[1]", "c(x[1])", ""])
def test_a_target_outside_the_task_is_an_error(target):
    with pytest.raises(ValueError, match=r"^target '.*': [^\n]+$"):
        score.scores(["a(x[1])"], [target], TASK)


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_holds_its_value_and_depends_on_the_seed_alone(seed):
    chosen = np.random.default_rng(seed).integers(len(KNOWN), size=(2, 40))
    targets = [TARGETS[i] for i in chosen[0]]
    answers = [TARGETS[i] if i == j else ANSWERS[j] for i, j in chosen.T]
    table = score.scores(answers, targets, TASK, seed=seed, resamples=200)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    pd.testing.assert_frame_equal(table, score.scores(answers, targets, TASK, seed=seed, resamples=200))


def width(meanings, sentences):
    """Of exact match's interval: half of the meanings are right, in each of their sentences."""
    targets = [f"a(x[{i}])" for i in range(meanings) for _ in range(sentences)]
    answers = [target if i // sentences % 2 else "" for i, target in enumerate(targets)]
    _, low, high = score.scores(answers, targets, None).loc["exact match"]
    return high - low


def test_sentences_that_agree_do_not_narrow_an_interval():
    # A share of 1/2 over n independent draws: 2 x 1.96 x 0.5 / sqrt(n) wide, so 0.196 for 100, 0.113 for 300.
    assert width(100, sentences=3) == pytest.approx(0.196, rel=0.1)
    assert width(300, sentences=1) == pytest.approx(0.113, rel=0.1)


def test_a_draw_without_the_attribute_says_nothing():
    rare = ["a(x[1], z[yes])"] + [f"a(x[{i}])" for i in range(2, 20)]  # z in one meaning of nineteen
    found = score.by_attribute(rare, rare, TASK).loc["z"]
    assert (found["F1"], found["low"], found["high"]) == (1, 1, 1)
    missing = score.by_attribute([f"a(x[{i}])" for i in range(19)], rare, TASK).loc["z"]
    assert (missing["F1"], missing["low"], missing["high"]) == (0, 0, 0)


def test_the_intervals_are_scipys():
    rng = np.random.default_rng(0)
    meant = rng.integers(1, 4, size=80)  # attributes a meaning
    hits = rng.integers(0, meant + 1)
    targets, answers = [], []
    for i, (m, h) in enumerate(zip(meant, hits, strict=True)):
        parts = [f"x[{i}]", "y[p]", "z[yes]"][:m]
        targets.append(f"a({', '.join(parts)})")
        answers.append(f"a({', '.join(parts[:h])})")  # a() does not parse: no hit either
    ours = score.scores(answers, targets, TASK, resamples=5000).loc["attribute recall"]
    theirs = stats.bootstrap(
        (hits, meant),
        lambda h, m, axis: h.sum(axis=axis) / m.sum(axis=axis),
        n_resamples=5000,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours["value"] == hits.sum() / meant.sum()
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(theirs), abs=0.01)
