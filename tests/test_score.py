import json

import numpy as np
import pandas as pd
import pytest

from tutorial import score
from tutorial.answers import Text
from tutorial.meaning import Description, Meanings

TASK = Meanings(Description(functions=["a", "b"], attributes={"x": "text", "y": "list", "z": ["yes", "no"]}))

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
    assert set(score.scores(TARGETS, TARGETS, TASK)["value"]) == {1}


def test_a_known_gain():
    # Right are rows 1 and 8 of the eight; of the targets themselves all are.
    assert score.gain(TARGETS, ANSWERS, TARGETS, TASK)["value"] == 6 / 8
    assert score.gain(ANSWERS, TARGETS, TARGETS, TASK)["value"] == -6 / 8
    same = score.gain(ANSWERS, ANSWERS, TARGETS, TASK)
    assert same["value"] == 0
    assert same["low"] == -same["high"] < 0


def test_known_scores_of_each_function():
    table = TASK.views(ANSWERS, TARGETS)["by_function"]
    assert table["rows"].to_dict() == {"a": 5, "b": 3}
    assert table["exact match"].to_dict() == pytest.approx({"a": 1 / 5, "b": 1 / 3})
    assert ((table["low"] <= table["exact match"]) & (table["exact match"] <= table["high"])).all()


def test_known_scores_of_each_attribute():
    # x: said in rows 1 2 4 6 7, meant in 1 2 4 5 6 7, right in 5; y: 1 2 8, 1 2 8, 3; z: 3 7, 3 4 6, none
    table = TASK.views(ANSWERS, TARGETS)["by_attribute"]
    assert table["support"].to_dict() == {"x": 6, "y": 3, "z": 3}
    assert table["precision"].to_dict() == pytest.approx({"x": 1, "y": 1, "z": 0})
    assert table["recall"].to_dict() == pytest.approx({"x": 5 / 6, "y": 1, "z": 0})
    assert table["F1"].to_dict() == pytest.approx({"x": 10 / 11, "y": 1, "z": 0})


def test_known_errors():
    assert score.count_kinds(ANSWERS, TARGETS, TASK).to_dict() == dict.fromkeys(Meanings.mistaken, 1)
    assert score.count_kinds(TARGETS, TARGETS, TASK).to_dict() == dict.fromkeys(Meanings.mistaken, 0)


def test_of_several_errors_the_first_one_counts():
    target = "a(x[1], y[p])"
    answers = ["b(z[no])", "a(z[no], x[2])", "a(z[no], x[2], y[p])", "a(y[q], x[1])", "a(y[p], x[1])"]
    kinds = [score.count_kinds([answer], [target], TASK).idxmax() for answer in answers]
    assert kinds == list(Meanings.mistaken)[1:]


def test_names_of_any_kind_are_scored():
    task = Meanings(
        Description(
            functions=["größer als", "a|b"],
            attributes={"customer rating": "text", "x*y_": "list", "Größe": ["S"]},
        )
    )
    target = "größer als(customer rating[5 out of 5], x*y_[p, q], Größe[S])"
    answers = [target, "größer als(Größe[S], x*y_[q, p], customer rating[5 out of 5])", "a|b(Größe[S])"]
    targets = [target, target, "a|b(Größe[S], customer rating[low])"]
    found = score.scores(answers, targets, task)["value"]
    assert (found["exact match"], found["canonical match"], found["valid answers"]) == (1 / 3, 2 / 3, 1)
    assert task.views(answers, targets)["by_function"]["exact match"].to_dict() == {
        "größer als": 0.5,
        "a|b": 0,
    }
    assert task.views(answers, targets)["by_attribute"]["recall"].to_dict() == pytest.approx(
        {"customer rating": 2 / 3, "x*y_": 1, "Größe": 1}
    )
    assert score.kinds(answers, targets, task).dropna().tolist() == ["order only", "missing attribute"]


def test_telling_answers_take_turns_over_the_kinds():
    targets = ["b(z[yes])", "a(x[22])", "a(x[1])", "a(x[333])", "a(x[1])"]
    answers = ["b(z[no])", "", "", "", "a(x[1])"]
    table = score.telling(list("vwxyz"), answers, targets, TASK, most=3)
    assert list(zip(table["kind"], table["input"], strict=True)) == [
        ("does not parse", "x"),  # the most frequent kind, its shortest target
        ("wrong value", "v"),
        ("does not parse", "w"),
    ]
    assert list(score.telling(["x"], ["a(x[1])"], ["a(x[1])"], TASK)) == [
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
    assert not score.scores([answer], [target], TASK)[["value", "low"]].to_numpy().any()
    assert TASK.views([answer], [target])["by_attribute"].loc["x"].tolist() == [1, 0, 0, 0]
    assert score.count_kinds([answer], [target], TASK)["does not parse"] == 1
    assert len(score.telling(["Is it fun?"], [answer], [target], TASK)) == 1


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
    assert score.kinds([answer], ["a(x[1])"], TASK).tolist() == [kind]


def calls(inputs, answers, targets):
    return [
        lambda: score.exact_match(answers, targets),
        lambda: score.scores(answers, targets, TASK),
        lambda: score.scores(answers, targets, Text()),
        lambda: score.gain(answers, answers, targets, TASK),
        lambda: TASK.views(answers, targets),
        lambda: score.count_kinds(answers, targets, TASK),
        lambda: score.telling(inputs, answers, targets, TASK),
    ]


@pytest.mark.parametrize(("answers", "targets"), [(["a"], ["a", "b"]), ([], [])])
def test_a_lost_row_is_an_error(answers, targets):
    for call in calls(targets, answers, targets):
        with pytest.raises(ValueError, match="answers for"):
            call()
    with pytest.raises(ValueError, match="2 inputs for 1 targets"):
        score.telling(["s", "t"], ["a(x[1])"], ["a(x[1])"], TASK)


@pytest.mark.parametrize("target", ["a(x[1]", "c(x[1])", ""])
def test_a_target_outside_the_task_is_an_error(target):
    with pytest.raises(ValueError, match=r"^target '.*': [^\n]+$"):
        score.scores(["a(x[1])"], [target], TASK)


def test_a_result_without_an_interval_is_null_in_json():
    found = score.scores(ANSWERS, TARGETS, TASK)
    written = json.loads(json.dumps(found.to_dict("index"), allow_nan=False))
    for name, row in written.items():
        none = [None] * 3 if name in ("attribute precision", "attribute recall", "attribute F1") else None
        assert (none is None) == (row["low"] is not None)
        assert none is None or [row["low"], row["high"], row["meanings"]] == none


def test_an_interval_holds_its_value():
    rng = np.random.default_rng(0)
    for chosen in rng.integers(len(KNOWN), size=(50, 2, 40)):
        targets = [TARGETS[i] for i in chosen[0]]
        answers = [TARGETS[i] if i == j else ANSWERS[j] for i, j in chosen.T]
        table = score.scores(answers, targets, TASK).dropna()
        assert len(table) == 5
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_another_metric_is_one_entry():
    """What CONTRIBUTING.md promises, in a copy of the table."""
    table = dict(Meanings.metrics)
    try:
        Meanings.metrics["one attribute"] = lambda row: len(row.said.attributes) == 1
        found = score.scores(ANSWERS, TARGETS, TASK).loc["one attribute"]
    finally:
        Meanings.metrics.clear()
        Meanings.metrics.update(table)
    assert (found["value"], found["low"] > 0) == (4 / 8, True)


def test_a_report_holds_every_view_of_every_system():
    answered = {
        name: pd.DataFrame({"input": "s", "answer": answers, "target": TARGETS})
        for name, answers in (("base", ANSWERS), ("tuned", TARGETS))
    }
    found = TASK.report(answered)
    assert found["scores"]["tuned"]["exact match"]["value"] == 1
    assert found["mistakes"]["base"] == score.count_kinds(ANSWERS, TARGETS, TASK).to_dict()
    assert found["gains"] == {"tuned over base": score.gain(TARGETS, ANSWERS, TARGETS, TASK)}
    assert set(found["by_function"]["base"]) == set("ab")
    assert json.loads(json.dumps(found)) == found
