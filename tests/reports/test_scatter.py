import re

import numpy as np
import pytest

from distill.reports.charts import MARGIN, SIDE, scatter

CORNERS = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M([-\d.]+) ([-\d.]+)", path)]


def test_points_fill_the_figure_in_proportion_and_lie_in_its_middle():
    figure = scatter(CORNERS, None, ())
    (group,) = figure.groups
    found = np.array(places(group.path))
    assert found[:, 0].min() == MARGIN
    assert found[:, 0].max() == SIDE - MARGIN
    assert np.ptp(found[:, 1]) == pytest.approx(np.ptp(found[:, 0]) / 2)
    assert found.mean(axis=0) == pytest.approx([SIDE / 2, SIDE / 2])


def test_groups_are_classes_that_occur():
    figure = scatter(CORNERS, np.array([2, 0, 2, 2]), ["a", "b", "c"])
    assert [(group.name, group.size) for group in figure.groups] == [("a", 1), ("c", 3)]
    assert len(places(figure.groups[1].path)) == 3
    assert places(figure.groups[0].path) == [(SIDE - MARGIN, pytest.approx(157, abs=1))]
    assert "of 2 classes" in figure.description


def test_42_classes_look_different_and_more_do_not():
    def looks(number: int):
        labels = np.arange(number)
        figure = scatter(
            np.random.default_rng(0).random((number, 2)), labels, [str(n) for n in labels]
        )
        return figure, {(group.color, group.mark) for group in figure.groups}

    figure, distinct = looks(42)
    assert len(distinct) == 42
    assert not figure.repeats
    figure, distinct = looks(43)
    assert len(distinct) == 42
    assert figure.repeats


def test_points_that_are_all_the_same_lie_in_the_middle():
    assert places(scatter(np.ones((3, 2)), None, ()).groups[0].path) == [(300, 300)] * 3
