"""A table of shares as the geometry of an SVG figure.

Up to `MAX_CELLS` clusters and classes are drawn cell by cell with their names; larger tables become
one transparent picture with a pixel a cell, which is as readable in the dark.

Shapes: K rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.report.pictures import png_uri

MAX_CELLS = 40
_MAX_WRITTEN = 16  # rows and columns up to which numbers are written into the cells
_CELL, _LETTER = 34, 7.0  # units of the figure
_HUE = (36, 118, 199)  # legible on both backgrounds
_MAX_NAME = 14


@dataclass(frozen=True)
class Cell:
    """One cell: its row and column, its share, and what is written into it."""

    row: int
    column: int
    share: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """A figure.

    Attributes:
        rows: Names, cut to size.
        columns: Likewise.
        cells: Those above 0.5 %; empty for a large table.
        picture: Data URI, for a large table.
        cell: Side of a cell in units of the figure.
        left: Space for the names of rows.
        top: Space for the names of columns.
        is_turned: Whether these are too long to be written level.
        description: In words.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    picture: str | None
    cell: float
    left: int
    top: int
    is_turned: bool
    description: str

    @property
    def width(self) -> float:
        """Of the figure."""
        return self.left + self.cell * len(self.columns) + 2 + self._overhang

    @property
    def _overhang(self) -> float:
        """Of the last turned name over the last column."""
        return max(0.0, 0.8 * self.top - self.cell / 2) if self.is_turned else 0.0

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.top + self.cell * len(self.rows) + 2


def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> HeatMap:
    """Lay out a table.

    Args:
        shares: (K, C), 0 to 1; what was matched lies on the diagonal.
        rows: K names.
        columns: C names.
    """
    is_small = max(shares.shape) <= MAX_CELLS
    rows_cut, columns_cut = tuple(map(_cut, rows)), tuple(map(_cut, columns))
    is_turned = max(map(len, columns_cut)) > 4
    letters = round(_LETTER * max(map(len, columns_cut)) * 0.8) if is_turned else 14
    return HeatMap(
        rows=rows_cut,
        columns=columns_cut,
        cells=tuple(_cells(shares)) if is_small else (),
        picture=None if is_small else _picture(shares),
        cell=_CELL if is_small else 600 / max(shares.shape),
        left=16 + round(_LETTER * max(map(len, rows_cut))) if is_small else 1,
        top=16 + letters if is_small else 1,
        is_turned=is_turned,
        description=_describe(shares, rows, columns),
    )


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _cells(shares: np.ndarray) -> list[Cell]:
    written = max(shares.shape) <= _MAX_WRITTEN
    return [
        Cell(
            int(row),
            int(column),
            round(float(shares[row, column]), 3),
            f"{100 * shares[row, column]:.0f}" if written else "",
        )
        for row, column in np.argwhere(shares >= 0.005)
    ]


def _picture(shares: np.ndarray) -> str:
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = _HUE
    # Shares of a thousandth would be invisible: the root lifts them.
    pixels[..., 3] = np.rint(255 * np.sqrt(np.clip(shares, 0, 1)))
    return png_uri(pixels)


def _describe(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    text = f"Shares of {len(columns)} classes in {len(rows)} clusters, matched pairs in order."
    if len(shares) and max(shares.shape) <= _MAX_WRITTEN:
        largest = shares.argmax(axis=1)
        text += " Largest class of each: " + ", ".join(
            f"{row} {columns[column]} {100 * shares[number, column]:.0f}%"
            for number, (row, column) in enumerate(zip(rows, largest, strict=True))
        )
    return text
