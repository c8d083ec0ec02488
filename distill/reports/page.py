"""Writes a report as one HTML file that needs no other file, no network and no script.

Every string from data is escaped by Jinja's autoescaping; a content security policy in the page
forbids whatever would come from elsewhere. Templates and the style sheet lie in `templates/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.reports import charts
from distill.reports.charts import BarChart, bar_chart, heat_map, line_chart, scatter
from distill.reports.comparison_tables import RULE, ComparisonContent, ComparisonTable
from distill.reports.content import Curves, RunContent, Series
from distill.reports.summary import WHO, comparison_rows, other_rows, summary_rows

if TYPE_CHECKING:
    from jinja2 import Environment


def run_page(run: RunContent) -> str:
    """Return the page about one run."""
    heat = plane = None
    if run.clusters is not None:
        heat = heat_map(run.clusters.shares, run.clusters.rows, run.clusters.columns)
    if run.map is not None:
        plane = scatter(run.map.points, run.map.labels, run.map.classes)
    return _render(
        "run.html",
        run=run,
        who=WHO,
        summary=summary_rows(run.metrics),
        others=other_rows(run.metrics),
        charts=[line_chart(curves) for curves in run.curves],
        robustness=None if run.robustness is None else line_chart(run.robustness),
        heat=heat,
        scatter=plane,
    )


def comparison_page(runs: Sequence[RunContent]) -> str:
    """Return the page about several runs: their numbers side by side, their curves overlaid."""
    return _render(
        "comparison.html",
        runs=runs,
        rows=comparison_rows([run.metrics for run in runs]),
        facts=_facts(runs),
        charts=[line_chart(curves) for curves in overlaid(runs)],
    )


def grid_page(content: ComparisonContent) -> str:
    """Return the page about a comparison of methods."""
    tables = content.tables
    return _render(
        "grid.html",
        content=content,
        rule=RULE,
        bars=[(table, _bar_charts(table)) for table in tables],
        curves=[
            (table, [line_chart(one) for one in curves])
            for table, curves in zip(tables, content.curves, strict=True)
        ],
    )


def _bar_charts(table: ComparisonTable) -> list[BarChart]:
    """Return a figure for each measure: methods as bars, what was not trained as lines."""
    charts = []
    for name, words in table.measures().items():
        measured = [(row, value) for row in table.rows if (value := row.values[name]) is not None]
        bars = [(row.name, value) for row, value in measured if row.num_asked]
        levels = [(row.name, value.mean) for row, value in measured if not row.num_asked]
        if bars:
            charts.append(bar_chart(words.capitalize(), bars, levels))
    return charts


def overlaid(runs: Sequence[RunContent]) -> list[Curves]:
    """Join the curves of several runs, figures of the same title into one.

    A series is called by its run, and by its own name too where its figure has more than one.
    """
    by_title: dict[str, list[tuple[str, Curves]]] = {}
    for run in runs:
        for curves in (*run.curves, *([run.robustness] if run.robustness else [])):
            by_title.setdefault(curves.title, []).append((run.name, curves))
    joined = []
    for title, parts in by_title.items():
        first = parts[0][1]
        series = [
            Series(name if len(curves.series) == 1 else f"{name}, {one.name}", one.x, one.y)
            for name, curves in parts
            for one in curves.series
        ]
        joined.append(Curves(title, first.x_label, first.y_label, series, first.is_share))
    return joined


def _facts(runs: Sequence[RunContent]) -> list[tuple[str, list[str]]]:
    """Return what runs were trained on what, and the options in which they differ."""
    names = dict.fromkeys(name for run in runs for name in run.facts)
    rows = [(name, [run.facts.get(name, "-") for run in runs]) for name in names]
    known = {name.lower() for name in names} | {"output"}
    options = dict.fromkeys(name for run in runs for name in run.options if name not in known)
    for name in options:
        values = [run.options.get(name, "-") for run in runs]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


# Of the figures, for the templates that draw what `charts` has laid out.
_LINE_SIZES = {
    "WIDTH": charts.LINE_WIDTH,
    "HEIGHT": charts.HEIGHT,
    "LEFT": charts.LINE_LEFT,
    "RIGHT": charts.LINE_RIGHT,
    "BOTTOM": charts.BOTTOM,
}
_BAR_SIZES = {"WIDTH": charts.WIDTH, "LEFT": charts.LEFT, "TOP": charts.TOP, "BAR": charts.BAR}


def _render(template: str, **values: Any) -> str:
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            date=time.strftime("%Y-%m-%d %H:%M %Z"),
            version=version("distill-vision"),
            size=_LINE_SIZES,
            bar_size=_BAR_SIZES,
            map_side=charts.SIDE,
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distill.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}%"
    environment.filters["comma"] = lambda number: f"{number:,}"
    environment.filters["short"] = lambda number: f"{np.round(number, 1):g}"
    return environment
