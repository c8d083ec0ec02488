"""Metrics as rows of a table: which belong together, which is best, how they are written.

Names in metrics.json are `NAME`, `teacher_NAME` and `untrained_NAME`; whatever else is there is
shown under its own name. A fraction of 1 is written in per cent when its name says that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEACHER, STUDENT, UNTRAINED = "teacher", "student", "untrained"
WHO = (TEACHER, STUDENT, UNTRAINED)
_SHARES = {
    "accuracy", "agreement", "alignment", "ap", "ari", "error", "gap", "map", "mce", "nmi",
    "purity", "recall", "share",
}  # fmt: skip
_LOWER_IS_BETTER = {"error", "gap", "mce"}
_NO_RANK = {"definition", "seconds", "steps", "num", "residual", "lipschitz", "entropy", "kl"}
_FIRST = ("nn_accuracy", "cluster_alignment", "linear_accuracy")


@dataclass(frozen=True)
class Number:
    """A cell.

    Attributes:
        text: As written; "-" where there is none.
        is_best: Whether no other of its row is better.
    """

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """One measure: its name in words and a number for each column."""

    label: str
    numbers: tuple[Number, ...]


def summary_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the measures of one run, a row each, in columns as `WHO`.

    Args:
        metrics: As in metrics.json; what is no number is left out, and so are measures of the
            student alone but for the first ones (see `other_rows`).
    """
    table = _by_name(metrics)
    names = [name for name in table if _is_compared(name, table[name])]
    return [_row(name, [table[name].get(who) for who in WHO]) for name in sorted(names, key=_order)]


def other_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the numbers that `summary_rows` leaves out, with one column."""
    table = _by_name(metrics)
    names = sorted((name for name in table if not _is_compared(name, table[name])), key=_order)
    return [_row(name, [table[name][STUDENT]]) for name in names]


def comparison_rows(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return all numbers of several runs, a row for each name, a column for each run.

    The best is marked among students; that a run had the better teacher is no merit of it.
    """
    names = list(dict.fromkeys(name for run in runs for name in run if _is_number(run[name])))
    names.sort(key=lambda name: (_order(_split(name)[1]), WHO.index(_split(name)[0])))
    return [
        _row(name, [run[name] if _is_number(run.get(name)) else None for run in runs])
        for name in names
    ]


def words(name: str) -> str:
    """Turn the name of a metric into words."""
    who, measure = _split(name)
    base, _, data = measure.partition("@")
    special = {
        "nn": "nearest neighbor",
        "nmi": "NMI",
        "ari": "ARI",
        "ap": "AP",
        "map": "mAP",
        "num": "number of",
        "ivf": "IVF",
        "voc": "VOC",
    }
    spelled = (re.sub(r"^k(\d+)$", r"k = \1", part) for part in base.split("_"))
    text = " ".join(special.get(part, part) for part in spelled)
    text = text[:1].upper() + text[1:] if text[:2] != "mA" else text
    text = f"{text} on {data}" if data else text
    return text if who == STUDENT else f"{text}, {who}"


def is_share(name: str, value: float) -> bool:
    """Say whether a number is a fraction of 1, to be written in per cent."""
    return -1 <= value <= 1 and bool(_SHARES & set(_parts(name)))


def _by_name(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if _is_number(value):
            who, base = _split(name)
            table.setdefault(base, {})[who] = value
    return table


def _split(name: str) -> tuple[str, str]:
    for who in (TEACHER, UNTRAINED):
        if name.startswith(who + "_"):
            return who, name[len(who) + 1 :]
    return STUDENT, name


def _parts(name: str) -> list[str]:
    return name.partition("@")[0].lower().split("_")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_compared(name: str, values: Mapping[str, float]) -> bool:
    return set(values) != {STUDENT} or name in _FIRST


def _order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort what matters most first, the rest by name, k = 5 before k = 20."""
    if name in _FIRST:
        return _FIRST.index(name), []
    parts = re.split(r"(\d+)", name)
    return len(_FIRST), [(len(p.lstrip("0")) if p.isdecimal() else 0, p) for p in parts]


def _row(name: str, values: Sequence[float | None]) -> Row:
    there = [value for value in values if value is not None]
    in_per_cent = all(is_share(name, value) for value in there)
    written = {value: _text(value, in_per_cent=in_per_cent) for value in there}
    # What is written alike is no difference.
    best = _best(name, there) if len({*written.values()}) > 1 else None
    numbers = (
        Number("-")
        if value is None
        else Number(written[value], best is not None and written[value] == written[best])
        for value in values
    )
    return Row(words(name), tuple(numbers))


def _best(name: str, values: Sequence[float]) -> float | None:
    """Return the best of several values; None where there is no better."""
    parts = set(_parts(name))
    if {*_NO_RANK, TEACHER, UNTRAINED} & parts or not _SHARES & parts:
        return None
    return min(values) if _LOWER_IS_BETTER & parts else max(values)


def _text(value: float, *, in_per_cent: bool) -> str:
    if in_per_cent:
        return f"{100 * value:.1f}%"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
