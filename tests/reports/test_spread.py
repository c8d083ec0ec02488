import math

import pytest

from distill.reports.spread import Spread, best_of, spread_of


def test_mean_and_standard_deviation_with_n_minus_1():
    found = spread_of([0.61, 0.64, 0.58])
    assert found is not None
    mean = (0.61 + 0.64 + 0.58) / 3
    squares = (0.61 - mean) ** 2 + (0.64 - mean) ** 2 + (0.58 - mean) ** 2
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(squares / 2))
    assert found.num == 3
    assert found.text() == "0.610 ± 0.030"


def test_one_value_has_no_spread_and_none_no_mean():
    assert spread_of([0.5]) == Spread(0.5, None, 1)
    assert Spread(0.5, None, 1).text() == "0.500"
    assert spread_of([]) is None


def test_the_best_must_be_above_every_other_by_more_than_the_spread():
    # sqrt(0.03^2 + 0.04^2) = 0.05
    second = Spread(0.60, 0.04, 3)
    assert best_of([second, Spread(0.651, 0.03, 3)]) == 1
    assert best_of([second, Spread(0.649, 0.03, 3)]) is None
    assert best_of([Spread(0.1, 0.5, 3), Spread(0.651, 0.03, 3), second]) == 1
    # Every other counts, not the next alone: 0.1 away and 0.5 wide.
    assert best_of([Spread(0.551, 0.5, 3), Spread(0.651, 0.03, 3), second]) is None
    assert best_of([second, Spread(0.62, 0.0, 3), Spread(0.651, 0.03, 3)]) == 2
    assert best_of([second, Spread(0.63, 0.0, 3), Spread(0.651, 0.03, 3)]) is None
    assert best_of([None, second, Spread(0.651, 0.03, 3)]) == 2


def test_equal_means_and_lonely_ones_are_not_best():
    assert best_of([Spread(0.5, 0.0, 3), Spread(0.5, 0.0, 3)]) is None
    assert best_of([Spread(0.5, 0.0, 3), None]) is None
    assert best_of([]) is None


def test_without_a_spread_nothing_is_best():
    assert best_of([Spread(0.9, None, 1), Spread(0.1, None, 1)]) is None
    assert best_of([Spread(0.9, 0.01, 3), Spread(0.1, None, 1)]) is None
    assert best_of([Spread(0.9, 0.01, 3), Spread(0.2, 0.01, 3), Spread(0.1, None, 1)]) is None
