"""Writes a report as one HTML file that needs no other file, no network and no script.

Every string from data is escaped by Jinja's autoescaping; a content security policy in the page
forbids whatever would come from elsewhere. Templates and the style sheet lie in `templates/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.reports import charts as bar_sizes
from distill.reports import charts as chart_sizes
from distill.reports import charts as scatter_sizes
from distill.reports.charts import BarChart, bar_chart, heat_map, line_chart, scatter
from distill.reports.comparison_tables import RULE, ComparisonContent, ComparisonTable
from distill.reports.content import Curves, RunContent, Series
from distill.reports.summary import WHO, comparison_rows, other_rows, summary_rows

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Made:
    """When and by what a report was made.

    Attributes:
        date: As it is to be shown.
        version: Of the toolkit.
    """

    date: str
    version: str


def run_page(run: RunContent, made: Made) -> str:
    """Return the page about one run."""
    clusters, points = run.clusters, run.map
    return _render(
        "run.html",
        run=run,
        made=made,
        who=WHO,
        summary=summary_rows(run.metrics),
        others=other_rows(run.metrics),
        charts=[line_chart(curves) for curves in run.curves],
        robustness=None if run.robustness is None else line_chart(run.robustness),
        heat=None
        if clusters is None
        else heat_map(clusters.shares, clusters.rows, clusters.columns),
        scatter=None if points is None else scatter(points.points, points.labels, points.classes),
    )


def comparison_page(runs: Sequence[RunContent], made: Made) -> str:
    """Return the page about several runs: their numbers side by side, their curves overlaid."""
    return _render(
        "comparison.html",
        runs=runs,
        made=made,
        rows=comparison_rows([run.metrics for run in runs]),
        facts=_facts(runs),
        charts=[line_chart(curves) for curves in overlaid(runs)],
    )


def grid_page(content: ComparisonContent, made: Made) -> str:
    """Return the page about a comparison of methods."""
    tables = content.tables
    return _render(
        "grid.html",
        content=content,
        made=made,
        rule=RULE,
        bars=[(table, _bar_charts(table)) for table in tables],
        curves=[
            (table, [line_chart(one) for one in found])
            for table, found in zip(tables, content.curves, strict=True)
        ],
    )


def _bar_charts(table: ComparisonTable) -> list[BarChart]:
    """Return a figure for each measure: methods as bars, what was not trained as lines."""
    charts = []
    for name, words in table.measures().items():
        found = [(row, value) for row in table.rows if (value := row.values[name]) is not None]
        bars = [(row.name, value) for row, value in found if row.num_asked]
        levels = [(row.name, value.mean) for row, value in found if not row.num_asked]
        if bars:
            charts.append(bar_chart(words.capitalize(), bars, levels))
    return charts


def overlaid(runs: Sequence[RunContent]) -> list[Curves]:
    """Join the curves of several runs, figures of the same title into one.

    A series is called by its run, and by its own name too where its figure has more than one.
    """
    titles = dict.fromkeys(curves.title for run in runs for curves in _all_curves(run))
    joined = []
    for title in titles:
        parts = [
            (run.name, curves)
            for run in runs
            for curves in _all_curves(run)
            if curves.title == title
        ]
        first = parts[0][1]
        series = [
            Series(name if len(curves.series) == 1 else f"{name}, {one.name}", one.x, one.y)
            for name, curves in parts
            for one in curves.series
        ]
        joined.append(Curves(title, first.x_label, first.y_label, series, first.is_share))
    return joined


def _all_curves(run: RunContent) -> list[Curves]:
    return [*run.curves, *([run.robustness] if run.robustness else [])]


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


def _render(template: str, **values: Any) -> str:
    sizes = {
        name: getattr(chart_sizes, name)
        for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")
    }
    bar_lengths = {name: getattr(bar_sizes, name) for name in ("WIDTH", "LEFT", "TOP", "BAR")}
    return (
        _environment()
        .get_template(template)
        .render(**values, size=sizes, bar_size=bar_lengths, map_side=scatter_sizes.SIDE)
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
