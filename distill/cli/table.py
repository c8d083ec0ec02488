"""Short tables for people; programs read metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one number a line, by name."""
    print_table([(name, _shown(value)) for name, value in metrics.items()])


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print left-aligned columns."""
    everything = [*([header] if header else []), *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(everything[0]))]
    for row in everything:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
