"""What the page about a comparison says, as plain data: nothing here knows runs, files or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.reports.content import Curves
from distill.reports.spread import Spread, best_of

MEASURES = {
    "linear_accuracy": "linear",
    "nn_accuracy": "nearest neighbor",
    "cluster_alignment": "cluster alignment",
}
METHOD, REFERENCE = "method", "reference"
RULE = (
    "Mean ± standard deviation over seeds (with n - 1). The best method of a column is marked only "
    "where its mean is above every other's by more than sqrt(s1² + s2²), s1 and s2 being their "
    "standard deviations; without two seeds each, nothing is marked. References are not compared."
)


@dataclass(frozen=True)
class GridRow:
    """A line of a table.

    Attributes:
        name: Of the method or of the reference.
        kind: `method` or `reference`.
        values: By the measure's name; None where nothing was measured.
        num_done: Runs that the values stand on; 0 for what is no method.
        num_failed: Runs that failed.
        num_asked: Runs that the grid asks for; 0 for what is no method.
        train_seconds: Mean length of a training; None where that is not known.
    """

    name: str
    kind: str
    values: Mapping[str, Spread | None]
    num_done: int = 0
    num_failed: int = 0
    num_asked: int = 0
    train_seconds: float | None = None

    def seeds(self) -> str:
        """Say on how many seeds the row stands."""
        if not self.num_asked:
            return ""
        text = str(self.num_done)
        if self.num_done < self.num_asked:
            text += f" of {self.num_asked}"
        return text + (f", {self.num_failed} failed" if self.num_failed else "")

    def minutes(self) -> str:
        """Write how long a training took, in minutes."""
        return "" if self.train_seconds is None else f"{self.train_seconds / 60:.1f}"


@dataclass(frozen=True)
class GridTable:
    """All methods with one student and one teacher."""

    student: str
    teacher: str
    rows: Sequence[GridRow]

    @property
    def title(self) -> str:
        """Student and teacher in words."""
        return f"{self.student}, taught by {self.teacher}"

    def measures(self) -> dict[str, str]:
        """Return the measures that the grid asks for, name to words."""
        return {name: words for name, words in MEASURES.items() if name in self.rows[0].values}

    def best(self, measure: str) -> GridRow | None:
        """Return the method that is best by more than the spread; None without one."""
        methods = [row for row in self.rows if row.kind == METHOD]
        position = best_of([row.values[measure] for row in methods])
        return None if position is None else methods[position]

    def remarks(self) -> list[str]:
        """Return what a reader must know about the rows, as sentences."""
        methods = [row for row in self.rows if row.num_asked]
        found = []
        missing = sum(row.num_asked - row.num_done - row.num_failed for row in methods)
        if missing:
            total = sum(row.num_asked for row in methods)
            found.append(f"Partial: {missing} of {total} runs have not been made.")
        single = [row.name for row in methods if row.num_done == 1]
        if single:
            names = "All methods stand" if len(single) == len(methods) else ", ".join(single)
            verb = (
                "" if len(single) == len(methods) else " stands" if len(single) == 1 else " stand"
            )
            found.append(f"{names}{verb} on one seed, which has no spread.")
        for name, words in self.measures().items():
            numbers = {row.name: _number(row.values[name]) for row in methods}
            fewer = [row.name for row in methods if numbers[row.name] < row.num_done]
            if fewer and any(numbers.values()):
                found.append(f"Not every run has measured {words}: {', '.join(fewer)}.")
        failed = [row.name for row in methods if row.num_failed]
        if failed:
            found.append(f"Runs failed, and are left out of the means: {', '.join(failed)}.")
        return found


def _number(value: Spread | None) -> int:
    return 0 if value is None else value.num


@dataclass(frozen=True)
class TuningChoice:
    """What was tried for a method with a student and a teacher.

    Attributes:
        method: Its name.
        student: Its name.
        teacher: Its name.
        tried: Settings in words, with the accuracy on held-out training images; None of a run that
            failed or is not made.
        chosen: Position of the one that was taken; None while that is open.
    """

    method: str
    student: str
    teacher: str
    tried: Sequence[tuple[str, float | None]]
    chosen: int | None


@dataclass(frozen=True)
class CellLine:
    """A run: its name, what became of it, its numbers in words, and how long it took."""

    name: str
    state: str
    numbers: str
    took: str


@dataclass(frozen=True)
class GridContent:
    """Everything about a comparison.

    Attributes:
        name: Of the comparison.
        budget: What every run may spend, by name.
        tables: One for each student and teacher.
        methods: Options of each method, in words.
        tuning: What was tried; empty where nothing is tuned.
        tuning_facts: How values were chosen, a sentence; empty where nothing is tuned.
        failed: Names of runs that failed, with the reason.
        curves: For each table, its figures.
        cells: Every run.
        notes: What else a reader must know, as sentences.
    """

    name: str
    budget: Mapping[str, str]
    tables: Sequence[GridTable]
    methods: Mapping[str, str]
    tuning: Sequence[TuningChoice]
    tuning_facts: str
    failed: Sequence[tuple[str, str]]
    curves: Sequence[Sequence[Curves]]
    cells: Sequence[CellLine]
    notes: Sequence[str] = ()
