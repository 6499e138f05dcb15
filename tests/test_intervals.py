"""Intervals: scipy's for independent rows, and wide enough where rows are not independent."""

import numpy as np
import pytest
from scipy import stats

from tutorial import score


def rows_of(right, sizes):
    """Of each row whether it is right, and its unit: unit i has `sizes[i]` rows, which agree."""
    of_unit = [number for number, size in enumerate(sizes) for _ in range(size)]
    return [bool(right[number]) for number in of_unit], [str(number) for number in of_unit]


def width(units, rows):
    """Of an interval: half of the units are right, in each of their rows."""
    _, low, high, counted = score.share(*rows_of([i % 2 for i in range(units)], [rows] * units))
    assert counted == units
    return high - low


def test_rows_that_agree_do_not_narrow_an_interval():
    # A share of 1/2 over n independent draws: 2 x 1.96 x 0.5 / sqrt(n) wide, so 0.196 for 100, 0.113 for 300.
    assert width(100, rows=3) == pytest.approx(0.196, rel=0.1)
    assert width(300, rows=1) == pytest.approx(0.113, rel=0.1)


@pytest.mark.parametrize(("right", "units"), [(0, 10), (3, 10), (10, 10), (1, 1), (92, 135)])
def test_the_intervals_are_scipys(right, units):
    value, low, high, _ = score.share(*rows_of(np.arange(units) < right, [3] * units))
    theirs = stats.binomtest(right, units).proportion_ci(method="exact")
    assert value == right / units
    assert (low, high) == pytest.approx(tuple(theirs))


def test_unequal_units_count_as_fewer():
    """Kish: (4 + 1 + 1)^2 / (16 + 1 + 1) = 2."""
    right, units = rows_of([1, 0, 1], [4, 1, 1])
    assert score.share(right, units)[3] == 2
    assert score.difference(right, [True] * 6, units)[3] == 2


@pytest.mark.parametrize("units", [8, 9, 10, 12, 20, 50, 135, 300])
def test_an_interval_covers_the_true_share(units):
    """Summed, not sampled: over each number of units that may be right, times how likely it is."""
    found = [score.share(*rows_of(np.arange(units) < right, [2] * units)) for right in range(units + 1)]
    for share in np.arange(0.5, 0.985, 0.01):
        covers = [low <= share <= high for _, low, high, _ in found]
        assert stats.binom.pmf(np.arange(units + 1), units, share) @ covers >= 0.95 - 1e-9


@pytest.mark.parametrize("share", [0.5, 0.8, 0.98])
@pytest.mark.parametrize("units", [8, 20, 60])
def test_an_interval_over_unequal_units_covers_the_true_share(units, share):
    """By simulation: units of 1 to 3 rows that agree, as ViGGO's meanings are."""
    rng, covered = np.random.default_rng(units), []
    for _ in range(300):
        sizes, right = rng.integers(1, 4, size=units), rng.random(units) < share
        _, low, high, _ = score.share(*rows_of(right, sizes))
        covered.append(low <= share <= high)
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize("units", [8, 20, 60, 300])
@pytest.mark.parametrize(
    ("more", "fewer"), [(0, 0), (0.05, 0), (0.2, 0), (0.68, 0), (0.95, 0.02), (0.1, 0.05), (0.5, 0.5)]
)
def test_a_gain_s_interval_covers_the_true_gain(units, more, fewer):
    """By simulation; what is the same in two draws is computed once."""
    drawn = np.random.default_rng(units).multinomial(units, [more, fewer, 1 - more - fewer], size=150)
    covered = {}
    for one, other, rest in set(map(tuple, drawn)):
        ours, names = rows_of([1] * one + [0] * other + [1] * rest, [1] * units)
        theirs, _ = rows_of([0] * one + [1] * other + [1] * rest, [1] * units)
        value, low, high, _ = score.difference(ours, theirs, names)
        assert -1 <= low <= value <= high <= 1
        covered[one, other, rest] = low - 1e-9 <= more - fewer <= high + 1e-9
    assert np.mean([covered[tuple(each)] for each in drawn]) >= 0.92
