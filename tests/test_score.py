import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tutorial import score
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
    assert set(score.scores(TARGETS, TARGETS, TASK)["value"]) == {1}
    [(metric, *_)] = score.scores(ANSWERS, TARGETS, None).itertuples()
    assert metric == "exact match"


def test_a_known_gain():
    # Right are rows 1 and 8 of the eight; of the targets themselves all are.
    assert score.gain(TARGETS, ANSWERS, TARGETS)["value"] == 6 / 8
    assert score.gain(ANSWERS, TARGETS, TARGETS)["value"] == -6 / 8
    same = score.gain(ANSWERS, ANSWERS, TARGETS)
    assert same["value"] == 0
    assert same["low"] == -same["high"] < 0


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


def test_known_errors():
    assert score.count_kinds(ANSWERS, TARGETS, TASK).to_dict() == dict.fromkeys(score.KINDS, 1)
    assert score.count_kinds(TARGETS, TARGETS, TASK).to_dict() == dict.fromkeys(score.KINDS, 0)


def test_plain_text_has_one_kind_of_error():
    answers, targets = ["Lyon", "Paris "], ["Rome", "Paris"]
    assert score.count_kinds(answers, targets, None).to_dict() == {"wrong answer": 1}
    [row] = score.telling(["one", "two"], answers, targets, None).itertuples(index=False)
    assert tuple(row) == ("wrong answer", "one", "Rome", "Lyon")


def test_plain_text_has_neither_functions_nor_attributes():
    assert list(score.scores(["a(x[1])"], ["a(x[1])"], None).index) == ["exact match"]
    assert score.by_function(["a(x[1])"], ["a(x[1])"], None).empty
    assert score.by_attribute(["a(x[1])"], ["a(x[1])"], None).empty


def test_of_several_errors_the_first_one_counts():
    target = "a(x[1], y[p])"
    answers = ["b(z[no])", "a(z[no], x[2])", "a(z[no], x[2], y[p])", "a(y[q], x[1])", "a(y[p], x[1])"]
    kinds = [score.count_kinds([answer], [target], TASK).idxmax() for answer in answers]
    assert kinds == list(score.KINDS)[1:]


def test_names_of_any_kind_are_scored():
    task = Description(
        functions=["größer als", "a|b"],
        attributes={"customer rating": "text", "x*y_": "list", "Größe": ["S"]},
    )
    target = "größer als(customer rating[5 out of 5], x*y_[p, q], Größe[S])"
    answers = [target, "größer als(Größe[S], x*y_[q, p], customer rating[5 out of 5])", "a|b(Größe[S])"]
    targets = [target, target, "a|b(Größe[S], customer rating[low])"]
    found = score.scores(answers, targets, task)["value"]
    assert (found["exact match"], found["canonical match"], found["valid answers"]) == (1 / 3, 2 / 3, 1)
    assert score.by_function(answers, targets, task)["exact match"].to_dict() == {"größer als": 0.5, "a|b": 0}
    assert score.by_attribute(answers, targets, task)["recall"].to_dict() == pytest.approx(
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
    assert score.by_attribute([answer], [target], TASK).loc["x"].tolist() == [1, 0, 0, 0]
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
        lambda: score.scores(answers, targets, None),
        lambda: score.by_function(answers, targets, TASK),
        lambda: score.by_attribute(answers, targets, TASK),
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


def rows_of(right, sizes):
    """Answers and targets: meaning i has `sizes[i]` sentences, which agree."""
    targets = [f"a(x[{i}])" for i, size in enumerate(sizes) for _ in range(size)]
    answers = [f"a(x[{i}])" if right[i] else "" for i, size in enumerate(sizes) for _ in range(size)]
    return answers, targets


def width(meanings, sentences):
    """Of exact match's interval: half of the meanings are right, in each of their sentences."""
    _, low, high, counted = score.scores(
        *rows_of([i % 2 for i in range(meanings)], [sentences] * meanings), None
    ).loc["exact match"]
    assert counted == meanings
    return high - low


def test_sentences_that_agree_do_not_narrow_an_interval():
    # A share of 1/2 over n independent draws: 2 x 1.96 x 0.5 / sqrt(n) wide, so 0.196 for 100, 0.113 for 300.
    assert width(100, sentences=3) == pytest.approx(0.196, rel=0.1)
    assert width(300, sentences=1) == pytest.approx(0.113, rel=0.1)


@pytest.mark.parametrize(("right", "meanings"), [(0, 10), (3, 10), (10, 10), (1, 1), (92, 135)])
def test_the_intervals_are_scipys(right, meanings):
    found = score.scores(*rows_of(np.arange(meanings) < right, [3] * meanings), None).loc["exact match"]
    theirs = stats.binomtest(right, meanings).proportion_ci(method="exact")
    assert (found["low"], found["high"]) == pytest.approx(tuple(theirs))


def test_an_interval_holds_its_value():
    rng = np.random.default_rng(0)
    for chosen in rng.integers(len(KNOWN), size=(50, 2, 40)):
        targets = [TARGETS[i] for i in chosen[0]]
        answers = [TARGETS[i] if i == j else ANSWERS[j] for i, j in chosen.T]
        table = score.scores(answers, targets, TASK).dropna()
        assert len(table) == 5
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_unequal_meanings_count_as_fewer():
    """Kish: (4 + 1 + 1)^2 / (16 + 1 + 1) = 2."""
    answers, targets = rows_of([1, 0, 1], [4, 1, 1])
    assert score.scores(answers, targets, None).loc["exact match", "meanings"] == 2
    assert score.gain(answers, targets, targets)["meanings"] == 2


@pytest.mark.parametrize("meanings", [8, 9, 10, 12, 20, 50, 135, 300])
def test_an_interval_covers_the_true_share(meanings):
    """Summed, not sampled: over each number of meanings that may be right, times how likely it is."""
    found = [
        score.scores(*rows_of(np.arange(meanings) < right, [2] * meanings), None).loc["exact match"]
        for right in range(meanings + 1)
    ]
    for share in np.arange(0.5, 0.985, 0.01):
        covers = [row["low"] <= share <= row["high"] for row in found]
        assert stats.binom.pmf(np.arange(meanings + 1), meanings, share) @ covers >= 0.95 - 1e-9


@pytest.mark.parametrize("share", [0.5, 0.8, 0.98])
@pytest.mark.parametrize("meanings", [8, 20, 60])
def test_an_interval_over_unequal_meanings_covers_the_true_share(meanings, share):
    """By simulation: meanings of 1 to 3 sentences that agree, as in ViGGO."""
    rng, covered = np.random.default_rng(meanings), []
    for _ in range(300):
        sizes, right = rng.integers(1, 4, size=meanings), rng.random(meanings) < share
        found = score.scores(*rows_of(right, sizes), None).loc["exact match"]
        covered.append(found["low"] <= share <= found["high"])
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize("meanings", [8, 20, 60, 300])
@pytest.mark.parametrize(
    ("more", "fewer"), [(0, 0), (0.05, 0), (0.2, 0), (0.68, 0), (0.95, 0.02), (0.1, 0.05), (0.5, 0.5)]
)
def test_a_gain_s_interval_covers_the_true_gain(meanings, more, fewer):
    """By simulation; what is the same in two draws is scored once."""
    drawn = np.random.default_rng(meanings).multinomial(meanings, [more, fewer, 1 - more - fewer], size=150)
    covered = {}
    for one, other, rest in set(map(tuple, drawn)):
        answers, targets = rows_of([1] * one + [0] * other + [1] * rest, [1] * meanings)
        others, _ = rows_of([0] * one + [1] * other + [1] * rest, [1] * meanings)
        found = score.gain(answers, others, targets)
        assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1
        covered[one, other, rest] = found["low"] - 1e-9 <= more - fewer <= found["high"] + 1e-9
    assert np.mean([covered[tuple(each)] for each in drawn]) >= 0.92


def test_another_metric_is_one_entry():
    """What CONTRIBUTING.md promises, in a copy of the table."""
    table = dict(score.METRICS)
    try:
        score.METRICS["one attribute"] = lambda row: len(row.said.attributes) == 1
        found = score.scores(ANSWERS, TARGETS, TASK).loc["one attribute"]
    finally:
        score.METRICS.clear()
        score.METRICS.update(table)
    assert (found["value"], found["low"] > 0) == (4 / 8, True)


def test_a_report_holds_every_view_of_every_system():
    answered = {
        name: pd.DataFrame({"answer": answers, "target": TARGETS})
        for name, answers in (("base", ANSWERS), ("tuned", TARGETS))
    }
    found = score.report(answered, TASK)
    assert found["scores"]["tuned"]["exact match"]["value"] == 1
    assert found["mistakes"]["base"] == score.count_kinds(ANSWERS, TARGETS, TASK).to_dict()
    assert found["gains"] == {"tuned over base": score.gain(TARGETS, ANSWERS, TARGETS)}
    assert set(found["by_function"]["base"]) == set(score.by_function(ANSWERS, TARGETS, TASK).index)
    assert json.loads(json.dumps(found)) == found
    assert score.report(answered, None)["by_attribute"] == {"base": {}, "tuned": {}}
