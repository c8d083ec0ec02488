"""Metrics as rows of a table: grouped, formatted, with the best marked.

Names in metrics.json are `NAME`, `teacher_NAME` and `untrained_NAME`. Meaning, unit and whether
larger is better come from the evaluations; an unknown metric is shown by its name, without a best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.evaluation.base import describe_metric

TEACHER, STUDENT, UNTRAINED = "teacher", "student", "untrained"
WHO = (TEACHER, STUDENT, UNTRAINED)
HEADLINE = ("nn_accuracy", "cluster_alignment", "linear_accuracy")


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        name: As in metrics.json.
        meaning: In words; empty where no evaluation knows the name.
        cells: For each column the formatted number, "-" where there is none, and whether it is the
            best of the row.
    """

    name: str
    meaning: str
    cells: tuple[tuple[str, bool], ...]


def summary_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the measures of one run, a row each, in columns as `WHO`.

    Args:
        metrics: As in metrics.json; values that are not numbers are left out, and so are measures
            of the student alone except `HEADLINE` (see `other_rows`).
    """
    by_name = _by_name(metrics)
    names = [name for name in by_name if _is_compared(name, by_name)]
    return [_row(name, [by_name[name].get(who) for who in WHO]) for name in names]


def other_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the numbers that `summary_rows` leaves out, with one column."""
    by_name = _by_name(metrics)
    names = [name for name in by_name if not _is_compared(name, by_name)]
    return [_row(name, [by_name[name][STUDENT]]) for name in names]


def comparison_rows(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return all numbers of several runs, a row for each name, a column for each run.

    The best is marked for students only, not for their teachers.
    """
    names = {name for run in runs for name in run if _is_number(run[name])}
    return [
        _row(
            name,
            [run[name] if _is_number(run.get(name)) else None for run in runs],
            is_ranked=_split(name)[0] == STUDENT,
        )
        for name in sorted(names, key=_order)
    ]


def _by_name(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return numbers by the name of the measure, then by network, in the order of `_order`."""
    by_name: dict[str, dict[str, float]] = {}
    for name in sorted(metrics, key=_order):
        if _is_number(metrics[name]):
            who, base = _split(name)
            by_name.setdefault(base, {})[who] = metrics[name]
    return by_name


def _split(name: str) -> tuple[str, str]:
    for who in (TEACHER, UNTRAINED):
        if name.startswith(who + "_"):
            return who, name.removeprefix(who + "_")
    return STUDENT, name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_compared(name: str, by_name: Mapping[str, Mapping[str, float]]) -> bool:
    return set(by_name[name]) != {STUDENT} or name in HEADLINE


def _order(name: str) -> tuple[int, list[tuple[int, str]], int]:
    """Sort headlines first, the rest by name, k = 5 before k = 20; a teacher before its student."""
    who, base = _split(name)
    first = HEADLINE.index(base) if base in HEADLINE else len(HEADLINE)
    parts = re.split(r"(\d+)", base)
    natural = [(len(p.lstrip("0")) if p.isdecimal() else 0, p) for p in parts]
    return first, natural, WHO.index(who)


def _row(name: str, values: Sequence[float | None], *, is_ranked: bool = True) -> Row:
    meaning = describe_metric(name)
    in_per_cent = meaning is not None and meaning.unit == "share of 1"
    present = [value for value in values if value is not None]
    written = {value: _written(value, in_per_cent=in_per_cent) for value in present}
    is_better = meaning.larger_is_better if is_ranked and meaning is not None else None
    best = None
    if is_better is not None and len({*written.values()}) > 1:  # formatted alike: no difference
        best = written[max(present) if is_better else min(present)]
    cells = (
        ("-", False) if value is None else (written[value], written[value] == best)
        for value in values
    )
    return Row(name, "" if meaning is None else meaning.words, tuple(cells))


def _written(value: float, *, in_per_cent: bool) -> str:
    if in_per_cent:
        return f"{100 * value:.1f}%"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
