"""The tables of a comparison: means over seeds, which is best, and the same as Markdown.

A spread is the standard deviation over seeds, with n - 1. The best of a column is marked only where
its mean is above every other's by more than sqrt(s1^2 + s2^2), s1 and s2 being the two spreads: two
single runs differ by about that much. This is a rule for reading a table, no test of significance:
with three seeds a spread is itself known poorly. One seed has no spread, so nothing is marked.

Everything here is plain data; `distill.comparison.results` fills it in and
`distill.reports.page.grid_page` makes a page of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from distill.markdown import escaped, table
from distill.reports.content import Curves

MEASURES = {
    "linear_accuracy": "linear",
    "nn_accuracy": "nearest neighbor",
    "cluster_alignment": "cluster alignment",
}
RULE = (
    "Mean ± standard deviation over seeds (with n - 1). The best method of a column is marked only "
    "where its mean is above every other's by more than sqrt(s1² + s2²), s1 and s2 being their "
    "standard deviations; without two seeds each, nothing is marked. References are not compared."
)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        std: Their standard deviation with n - 1; None of one value.
        num: How many there are.
    """

    mean: float
    std: float | None
    num: int

    def text(self) -> str:
        """Write mean and standard deviation."""
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation; None without values.

    >>> spread_of([0.5, 0.7]).text()
    '0.600 ± 0.141'
    """
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def best_of(spreads: Sequence[Spread | None]) -> int | None:
    """Return the position of the one that is best by more than the spread; None without one.

    Args:
        spreads: Of what is compared, higher being better; None where nothing was measured.
    """
    measured = [(one, position) for position, one in enumerate(spreads) if one is not None]
    if len(measured) < 2:
        return None
    (first, position), *others = sorted(measured, key=lambda pair: -pair[0].mean)
    for other, _ in others:
        if first.std is None or other.std is None:
            return None
        if first.mean - other.mean <= math.hypot(first.std, other.std):
            return None
    return position


@dataclass(frozen=True)
class TableRow:
    """A line of a table.

    Attributes:
        name: Of the method or of the reference.
        values: By the measure's name; None where nothing was measured.
        is_reference: Whether it stands beside the compared methods and is never marked as best.
        num_done: Trials that the values stand on; 0 for what is not trained.
        num_failed: Trials that failed.
        num_asked: Trials that the grid asks for; 0 for what is not trained.
        train_seconds: Mean length of a training; None where that is not known.
    """

    name: str
    values: Mapping[str, Spread | None]
    is_reference: bool = False
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
class ComparisonTable:
    """All methods with one student and one teacher."""

    student: str
    teacher: str
    rows: Sequence[TableRow]

    @property
    def title(self) -> str:
        """Student and teacher in words."""
        return f"{self.student}, taught by {self.teacher}"

    def measures(self) -> dict[str, str]:
        """Return the measures that the grid asks for, name to words."""
        return {name: words for name, words in MEASURES.items() if name in self.rows[0].values}

    def best(self, measure: str) -> TableRow | None:
        """Return the method that is best by more than the spread; None without one."""
        methods = [row for row in self.rows if not row.is_reference]
        position = best_of([row.values[measure] for row in methods])
        return None if position is None else methods[position]

    def remarks(self) -> list[str]:
        """Return what a reader must know about the rows, as sentences."""
        trained = [row for row in self.rows if row.num_asked]
        remarks = []
        missing = sum(row.num_asked - row.num_done - row.num_failed for row in trained)
        if missing:
            total = sum(row.num_asked for row in trained)
            remarks.append(f"Partial: {missing} of {total} runs have not been made.")
        single = [row.name for row in trained if row.num_done == 1]
        if single and len(single) == len(trained):
            remarks.append("All methods stand on one seed, which has no spread.")
        elif single:
            verb = "stands" if len(single) == 1 else "stand"
            remarks.append(f"{', '.join(single)} {verb} on one seed, which has no spread.")
        for name, words in self.measures().items():
            numbers = {row.name: value.num if (value := row.values[name]) else 0 for row in trained}
            fewer = [row.name for row in trained if numbers[row.name] < row.num_done]
            if fewer and any(numbers.values()):
                remarks.append(f"Not every run has measured {words}: {', '.join(fewer)}.")
        failed = [row.name for row in trained if row.num_failed]
        if failed:
            remarks.append(f"Runs failed, and are left out of the means: {', '.join(failed)}.")
        return remarks


@dataclass(frozen=True)
class TuningChoice:
    """What was tried for a method with a student and a teacher.

    Attributes:
        method: Its name.
        student: Its name.
        teacher: Its name.
        tried: Settings in words, with the accuracy on held-out training images; None of a trial
            that failed or is not made.
        chosen: Position of the one that was taken; None while that is open.
    """

    method: str
    student: str
    teacher: str
    tried: Sequence[tuple[str, float | None]]
    chosen: int | None


@dataclass(frozen=True)
class TrialLine:
    """A trial: its name, what became of it, its numbers in words, and how long it took."""

    name: str
    state: str
    numbers: str
    took: str


@dataclass(frozen=True)
class ComparisonContent:
    """Everything about a comparison.

    Attributes:
        name: Of the comparison.
        budget: What every run may spend, by name.
        tables: One for each student and teacher.
        methods: Options of each method, in words.
        tuning: What was tried; empty where nothing is tuned.
        tuning_facts: How values were chosen, a sentence; empty where nothing is tuned.
        failed: Names of trials that failed, with the reason.
        curves: For each table, its figures.
        trials: Every trial.
        notes: What else a reader must know, as sentences.
    """

    name: str
    budget: Mapping[str, str]
    tables: Sequence[ComparisonTable]
    methods: Mapping[str, str]
    tuning: Sequence[TuningChoice]
    tuning_facts: str
    failed: Sequence[tuple[str, str]]
    curves: Sequence[Sequence[Curves]]
    trials: Sequence[TrialLine]
    notes: Sequence[str] = ()


def table_rows(shown: ComparisonTable) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table as plain text; the best has a star."""
    measures = shown.measures()
    best = {name: shown.best(name) for name in measures}
    rows = []
    for row in shown.rows:
        texts = []
        for name in measures:
            value = row.values[name]
            star = " *" if best[name] is row else ""
            texts.append("-" if value is None else value.text() + star)
        rows.append([row.name, *texts, row.seeds(), row.minutes()])
    return ["", *measures.values(), "seeds", "training, min"], rows


def comparison_markdown(content: ComparisonContent) -> str:
    """Return the tables with what they stand on, to be pasted into documentation."""
    budget = ", ".join(f"{name} {value}" for name, value in content.budget.items())
    lines = [f"# {escaped(content.name)}", "", f"Every run: {escaped(budget)}.", ""]
    for shown in content.tables:
        header, rows = table_rows(shown)
        cells = [[escaped(name), *(_bold_if_best(text) for text in row)] for name, *row in rows]
        lines += [f"## {escaped(shown.title)}", "", *table(header, cells), ""]
        if remarks := shown.remarks():
            lines += [escaped(" ".join(remarks)), ""]
    lines += [escaped(RULE), ""]
    for note in content.notes:
        lines += [escaped(note), ""]
    options = [[escaped(name), escaped(words)] for name, words in content.methods.items()]
    lines += ["## Methods", "", *table(["method", "options beside the common ones"], options), ""]
    if content.tuning:
        header = ["method", "student", "teacher", "accuracy on held-out training images"]
        tried = [_tuning_row(choice) for choice in content.tuning]
        lines += ["## Tuning", "", escaped(content.tuning_facts), "", *table(header, tried), ""]
    if content.failed:
        lines += ["## Failed", ""]
        lines += [f"- {escaped(name)}: {escaped(error)}" for name, error in content.failed]
    return "\n".join(lines).rstrip("\n") + "\n"


def _bold_if_best(text: str) -> str:
    return f"**{text[:-2]}**" if text.endswith(" *") else escaped(text)


def _tuning_row(choice: TuningChoice) -> list[str]:
    tried = [
        f"{escaped(words)}: {'-' if score is None else f'{score:.3f}'}"
        for words, score in choice.tried
    ]
    if choice.chosen is not None:
        tried[choice.chosen] = f"**{tried[choice.chosen]}**"
    names = (choice.method, choice.student, choice.teacher)
    return [*(escaped(name) for name in names), ", ".join(tried)]
