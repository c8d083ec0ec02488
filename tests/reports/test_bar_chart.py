import math

import pytest

from distill.reports.charts import LEFT, RIGHT, ROW, bar_chart
from distill.reports.comparison_tables import Spread


def test_lengths_errors_and_levels_are_to_scale_and_start_at_zero():
    figure = bar_chart(
        "Linear", [("a", Spread(0.4, 0.1, 3)), ("b", Spread(0.2, None, 1))], [("teacher", 0.8)]
    )
    assert figure.ticks[0].label == "0"
    assert figure.ticks[0].place == LEFT
    assert figure.ticks[-1].place == RIGHT
    per_unit = (RIGHT - LEFT) / float(figure.ticks[-1].label)
    first, second = figure.bars
    assert first.length == pytest.approx(0.4 * per_unit)
    assert second.length == pytest.approx(0.2 * per_unit)
    assert first.error == pytest.approx((LEFT + 0.3 * per_unit, LEFT + 0.5 * per_unit))
    assert second.error is None
    assert figure.levels[0].place == pytest.approx(LEFT + 0.8 * per_unit)
    assert second.top - first.top == ROW
    assert figure.height > figure.bottom > second.top


def test_error_bars_do_not_go_below_zero():
    error = bar_chart("x", [("a", Spread(0.1, 0.3, 2))]).bars[0].error
    assert error is not None
    assert error[0] == LEFT


def test_long_names_are_cut_and_values_that_are_not_finite_left_out():
    figure = bar_chart("x", [("n" * 90, Spread(0.1, None, 1)), ("bad", Spread(math.nan, None, 1))])
    assert [len(bar.name) < 50 for bar in figure.bars] == [True]
    assert figure.bars[0].name.endswith("…")


def test_nothing_but_zeros_is_drawn_without_fault():
    assert bar_chart("x", [("a", Spread(0.0, 0.0, 2))]).bars[0].length == 0
    assert bar_chart("x", []).bars == ()


def test_the_description_says_what_the_eye_sees():
    text = bar_chart("Linear", [("a", Spread(0.4, 0.1, 3))], [("teacher", 0.8)]).description
    assert text == "Linear. a: 0.400 ± 0.100. Line, teacher: 0.800."
