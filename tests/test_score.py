import pytest

from tutorial import score


def test_known_answers():
    targets = ["a(x[1])", "b(y[2], z[3])", "c()", "d()"]
    answers = ["a(x[1])", "b(z[3], y[2])", " c()\n", "D()"]
    assert score.exact_match(answers, targets) == 0.5
    assert score.exact_match(targets, targets) == 1
    assert score.exact_match(["", "", "", ""], targets) == 0


@pytest.mark.parametrize(("answers", "targets"), [(["a"], ["a", "b"]), ([], [])])
def test_a_lost_row_is_an_error(answers, targets):
    with pytest.raises(ValueError, match="answers for"):
        score.exact_match(answers, targets)
