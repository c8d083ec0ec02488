import math

import pytest

from distill.reports.charts import axis_of, tick_label


def test_ticks_are_round_and_enclose_the_values():
    axis = axis_of([0.46, 2.31])
    assert axis.ticks == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert (axis.low, axis.high) == (0.0, 2.5)
    assert axis_of([3, 97]).ticks == (0, 20, 40, 60, 80, 100)
    assert axis_of([-7.0, 7.0]).ticks == (-10.0, -5.0, 0.0, 5.0, 10.0)


def test_values_on_ticks_need_no_further_tick():
    assert axis_of([0, 1]).ticks == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert axis_of([0.1, 0.3]).ticks == (0.1, 0.15, 0.2, 0.25, 0.3)


def test_one_value_no_value_and_values_that_are_not_finite():
    axis = axis_of([4.0])
    assert axis.low < 4 < axis.high
    assert axis_of([0.0, 0.0]).low < 0
    assert (axis_of([]).low, axis_of([]).high) == (0.0, 1.0)
    assert axis_of([math.nan, 1, math.inf, 2]).ticks[-1] == 2.0


def test_places_are_linear_and_may_run_backwards():
    axis = axis_of([0, 10])
    assert axis.place(2.5, 100, 200) == pytest.approx(125)
    assert axis.place(2.5, 200, 100) == pytest.approx(175)


def test_labels():
    assert [tick_label(value) for value in (0.0, 0.5, 20.0, 1500.0, 20000.0)] == [
        "0", "0.5", "20", "1500", "20k",
    ]  # fmt: skip
    assert tick_label(0.00015) == "1.5e-4"
    assert tick_label(-0.0002) == "-2e-4"
    assert tick_label(0.001) == "0.001"
    assert tick_label(0.93, is_share=True) == "93%"
    assert tick_label(0.305, is_share=True) == "30.5%"
