import math

import pytest

from distill.reports.charts import (
    BOTTOM,
    MAX_POINTS,
    line_chart,
    thinned,
)
from distill.reports.charts import (
    LINE_LEFT as LEFT,
)
from distill.reports.charts import (
    LINE_RIGHT as RIGHT,
)
from distill.reports.charts import (
    LINE_TOP as TOP,
)
from distill.reports.content import Curves, Series


def chart(*series: Series, is_share: bool = False):
    return line_chart(Curves("Loss", "step", "loss", series, is_share))


def test_points_lie_where_their_values_are():
    figure = chart(Series("a", [0, 5, 10], [0.0, 1.0, 2.0]))
    middle = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    assert figure.lines[0].marks == ((LEFT, BOTTOM), middle, (RIGHT, TOP))
    assert figure.lines[0].path == f"M{LEFT} {BOTTOM}L{middle[0]:g} {middle[1]:g}L{RIGHT} {TOP}"


def test_ticks_stand_beside_the_values_that_they_name():
    figure = chart(Series("a", [0, 10], [0.0, 2.0]))
    assert [(tick.label, tick.place) for tick in figure.y_ticks[::4]] == [("0", BOTTOM), ("2", TOP)]
    assert [(tick.label, tick.place) for tick in figure.x_ticks[::5]] == [
        ("0", LEFT),
        ("10", RIGHT),
    ]


def test_the_horizontal_axis_ends_with_the_values_and_series_share_it():
    figure = chart(Series("a", [3, 85], [1.0, 1.0]), Series("b", [3, 44], [2.0, 2.0]))
    assert [tick.label for tick in figure.x_ticks] == ["20", "40", "60", "80"]
    assert all(LEFT <= tick.place <= RIGHT for tick in figure.x_ticks)
    assert figure.lines[0].marks[-1][0] == RIGHT
    assert figure.lines[1].marks[-1][0] == LEFT + (RIGHT - LEFT) / 2
    assert [line.style for line in figure.lines] == [0, 1]


def test_the_vertical_axis_shows_what_else_it_is_told_to():
    alone = Series("a", [0, 10], [1.0, 2.0])
    figure = line_chart(Curves("Loss", "step", "loss", [alone], y_also=[0.0, 4.0]))
    assert [tick.label for tick in (figure.y_ticks[0], figure.y_ticks[-1])] == ["0", "4"]
    assert figure.lines[0].marks[0] == (LEFT, BOTTOM + (TOP - BOTTOM) / 4)


def test_what_is_not_finite_is_a_gap():
    figure = chart(Series("a", [0, 1, 2, 3], [1.0, math.nan, 2.0, 1.0]))
    path = figure.lines[0].path
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert "nan" not in path
    assert len(figure.lines[0].marks) == 3


def test_a_gap_alone_and_a_single_point_are_drawn_without_fault():
    assert chart(Series("a", [0, 1], [math.nan, math.inf])).lines[0].path == ""
    assert "no values" in chart(Series("a", [0], [math.nan])).description
    assert len(chart(Series("a", [7], [2.0])).lines[0].marks) == 1


def test_long_series_are_thinned_to_means_of_bins():
    series = Series("a", list(range(1000)), [value % 2 for value in range(1000)])
    thin = thinned(series, 100)
    assert thin.x == pytest.approx([4.5 + 10 * i for i in range(100)])
    assert thin.y == pytest.approx([0.5] * 100)
    assert thinned(series, 1000) is series
    figure = chart(series)
    assert figure.lines[0].path.count("L") == MAX_POINTS - 1
    assert len(figure.lines[0].marks) == 1  # the last point only


def test_the_description_says_what_the_eye_sees():
    text = chart(Series("student", [1, 2, 3], [2.5, 0.25, 1.0])).description
    assert "loss against step" in text
    assert "student: 3 points from 2.5 to 1, between 0.25 and 2.5" in text
    share = chart(Series("a", [1, 2], [0.5, 0.725]), is_share=True)
    assert "from 50.0% to 72.5%" in share.description
    assert share.y_ticks[0].label.endswith("%")
