"""The figures of a comparison's curves: means over seeds, evenly filled, on one axis."""

import pytest

from distill.comparison.cells import Cell
from distill.comparison.curves import held_out_curves
from distill.comparison.grid import Method
from distill.comparison.state import Outcome
from distill.reports.charts import line_chart


def cell(method: str, seed: int, *, student: str = "s", tuning: dict | None = None) -> Cell:
    name = f"{method}-{student}-{seed}-{tuning}"
    return Cell(name, Method(method, {}), student, "t", seed, {}, tuning)


def test_a_curve_is_the_mean_over_seeds_at_the_epochs_that_all_have():
    cells = [cell("m", 0), cell("m", 1), cell("m", 2), cell("m", 0, student="another")]
    cells.append(cell("m", 0, tuning={"learning_rate": 1.0}))
    outcomes = {one.name: Outcome("done", {}, holdout_curve=[(4, 0.9), (8, 0.9)]) for one in cells}
    outcomes[cells[0].name] = Outcome("done", {}, holdout_curve=[(4, 0.2), (8, 0.4)])
    outcomes[cells[1].name] = Outcome("done", {}, holdout_curve=[(4, 0.4), (6, 0.5), (8, 0.8)])
    outcomes[cells[2].name] = Outcome("failed", {}, holdout_curve=[(4, 0.0)])
    (figure,) = held_out_curves(cells, outcomes, "s", "t")
    (series,) = figure.series
    assert (series.name, list(series.x)) == ("m", [4, 8])
    assert list(series.y) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize(
    ("number", "sizes"), [(0, []), (1, [1]), (7, [7]), (8, [4, 4]), (15, [5, 5, 5])]
)
def test_figures_are_filled_evenly_and_have_one_vertical_axis(number, sizes):
    cells = [cell(f"m{i}", 0) for i in range(number)]
    outcomes = {
        one.name: Outcome("done", {}, holdout_curve=[(4, 0.01 * i), (8, 0.05 * i)])
        for i, one in enumerate(cells)
    }
    figures = held_out_curves(cells, outcomes, "s", "t")
    assert [len(figure.series) for figure in figures] == sizes
    assert [one.name for figure in figures for one in figure.series] == [
        one.method.name for one in cells
    ]
    assert len({line_chart(figure).y_ticks for figure in figures}) == min(number, 1)
