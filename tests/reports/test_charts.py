"""Figures as geometry: what is drawn lies where its value is."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from distill.reports import charts
from distill.reports.charts import (
    BOTTOM,
    LINE_LEFT,
    LINE_RIGHT,
    LINE_TOP,
    MAX_CELLS,
    MAX_POINTS,
    axis_of,
    bar_chart,
    heat_map,
    line_chart,
    scatter,
    thinned,
    tick_label,
)
from distill.reports.comparison_tables import Spread
from distill.reports.content import Curves, Series


def chart(*series: Series, is_share: bool = False):
    return line_chart(Curves("Loss", "step", "loss", series, is_share))


def test_ticks_are_round_and_enclose_the_finite_values():
    axis = axis_of([0.46, 2.31])
    assert axis.ticks == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert (axis.low, axis.high) == (0.0, 2.5)
    assert axis.place(0.5, 200, 100) == pytest.approx(180)
    assert axis_of([0, 1]).ticks == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert axis_of([4.0]).low < 4 < axis_of([4.0]).high
    assert (axis_of([]).low, axis_of([]).high) == (0.0, 1.0)
    assert axis_of([math.nan, 1, math.inf, 2]).ticks[-1] == 2.0


def test_labels():
    values = (0.0, 0.5, 20000.0, 0.00015, 0.001)
    assert [tick_label(value) for value in values] == ["0", "0.5", "20k", "1.5e-4", "0.001"]
    assert tick_label(0.305, is_share=True) == "30.5%"


def test_points_of_a_curve_lie_where_their_values_are():
    figure = chart(Series("a", [0, 5, 10], [0.0, 1.0, 2.0]), Series("b", [0, 5], [2.0, 2.0]))
    middle = (LINE_LEFT + LINE_RIGHT) / 2, (LINE_TOP + BOTTOM) / 2
    assert figure.lines[0].marks == ((LINE_LEFT, BOTTOM), middle, (LINE_RIGHT, LINE_TOP))
    assert [line.style for line in figure.lines] == [0, 1]
    y_ticks = [(tick.label, tick.place) for tick in figure.y_ticks[::4]]
    assert y_ticks == [("0", BOTTOM), ("2", LINE_TOP)]
    x_ticks = [(tick.label, tick.place) for tick in figure.x_ticks[::5]]
    assert x_ticks == [("0", LINE_LEFT), ("10", LINE_RIGHT)]


def test_what_is_not_finite_is_a_gap():
    (line,) = chart(Series("a", [0, 1, 2, 3], [1.0, math.nan, 2.0, 1.0])).lines
    assert (line.path.count("M"), line.path.count("L"), len(line.marks)) == (2, 1, 3)
    assert chart(Series("a", [0, 1], [math.nan, math.inf])).lines[0].path == ""
    assert "no values" in chart(Series("a", [0], [math.nan])).description


def test_long_series_are_thinned_to_means_of_bins():
    series = Series("a", list(range(1000)), [value % 2 for value in range(1000)])
    thin = thinned(series, 100)
    assert thin.x == pytest.approx([4.5 + 10 * i for i in range(100)])
    assert thin.y == pytest.approx([0.5] * 100)
    assert chart(series).lines[0].path.count("L") == MAX_POINTS - 1


def test_descriptions_say_what_is_seen():
    text = chart(Series("student", [1, 2, 3], [0.5, 0.25, 0.725]), is_share=True).description
    assert "student: 3 points from 50.0% to 72.5%, between 25.0% and 72.5%" in text
    text = bar_chart("Linear", [("a", Spread(0.4, 0.1, 3))], [("teacher", 0.8)]).description
    assert text == "Linear. a: 0.400 ± 0.100. Line, teacher: 0.800."


def test_bars_start_at_zero_and_are_to_scale():
    bars = [("n" * 90, Spread(0.4, 0.1, 3)), ("b", Spread(0.2, None, 1))]
    figure = bar_chart("Linear", [*bars, ("bad", Spread(math.nan, None, 1))], [("teacher", 0.8)])
    assert (figure.ticks[0].label, figure.ticks[0].place) == ("0", charts.LEFT)
    per_unit = (charts.RIGHT - charts.LEFT) / float(figure.ticks[-1].label)
    first, second = figure.bars  # what is not finite has none
    assert (first.length, second.length) == pytest.approx((0.4 * per_unit, 0.2 * per_unit))
    assert first.error == pytest.approx([charts.LEFT + x * per_unit for x in (0.3, 0.5)])
    assert second.error is None
    assert figure.levels[0].place == pytest.approx(charts.LEFT + 0.8 * per_unit)
    assert first.name.endswith("…")
    assert bar_chart("x", [("a", Spread(0.0, 0.0, 2))]).bars[0].length == 0


def test_cells_of_a_small_table_carry_their_share():
    shares = np.array([[0.9, 0.1, 0.0], [0.004, 0.5, 0.496]])
    figure = heat_map(shares, ["cluster 3", "cluster 0"], ["cat", "dog", "a very long class name"])
    cells = [(cell.row, cell.column, cell.share, cell.text) for cell in figure.cells]
    assert cells == [(0, 0, 0.9, "90"), (0, 1, 0.1, "10"), (1, 1, 0.5, "50"), (1, 2, 0.496, "50")]
    assert figure.columns[2] == "a very long c…"
    assert "cluster 3 cat 90%" in figure.description


def test_a_large_table_is_a_transparent_picture_with_a_pixel_a_cell():
    size = MAX_CELLS + 1
    shares = np.zeros((size, size))
    shares[3, 7], shares[0, 0] = 1.0, 0.25
    names = [str(n) for n in range(size)]
    figure = heat_map(shares, names, names)
    assert figure.cells == ()
    data = base64.b64decode(figure.picture.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        alpha = np.asarray(image)[..., 3]
    assert alpha.shape == (size, size)
    assert (alpha[3, 7], alpha[0, 0], int(alpha.sum())) == (255, 128, 383)


def test_points_of_a_map_keep_their_proportion_and_their_classes():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])
    figure = scatter(corners, np.array([2, 0, 2, 2]), ["a", "b", "c"])
    assert [(group.name, group.size) for group in figure.groups] == [("a", 1), ("c", 3)]
    (group,) = scatter(corners, None, ()).groups
    places = np.array(re.findall(r"M([-\d.]+) ([-\d.]+)", group.path), float)
    assert places[:, 0].min() == charts.MARGIN
    assert np.ptp(places[:, 1]) == pytest.approx(np.ptp(places[:, 0]) / 2)
    assert places.mean(axis=0) == pytest.approx([charts.SIDE / 2] * 2)


@pytest.mark.parametrize("number", [42, 43])
def test_42_classes_look_different_and_more_do_not(number: int):
    points, labels = np.random.default_rng(0).random((number, 2)), np.arange(number)
    figure = scatter(points, labels, [str(n) for n in labels])
    assert len({(group.color, group.mark) for group in figure.groups}) == 42
    assert figure.repeats == (number > 42)
