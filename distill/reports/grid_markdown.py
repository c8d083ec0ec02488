"""A comparison's tables as Markdown, to be pasted into documentation."""

from __future__ import annotations

from collections.abc import Sequence

from distill.markdown import escaped, table
from distill.reports.grid_content import RULE, GridContent, GridTable, TuningChoice


def grid_markdown(content: GridContent) -> str:
    """Return the tables with what they stand on."""
    budget = ", ".join(f"{name} {value}" for name, value in content.budget.items())
    lines = [f"# {escaped(content.name)}", "", f"Every run: {escaped(budget)}.", ""]
    for found in content.tables:
        lines += [*_table(found), ""]
    lines += [escaped(RULE), ""]
    for note in content.notes:
        lines += [escaped(note), ""]
    lines += ["## Methods", "", *_methods(content), ""]
    if content.tuning:
        lines += ["## Tuning", "", escaped(content.tuning_facts), "", *_tuning(content.tuning), ""]
    if content.failed:
        lines += ["## Failed", ""]
        lines += [f"- {escaped(name)}: {escaped(error)}" for name, error in content.failed]
        lines += [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def table_rows(found: GridTable) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table as plain text; the best has a star."""
    measures = found.measures()
    best = {name: found.best(name) for name in measures}
    header = ["", *measures.values(), "seeds", "training, min"]
    rows = []
    for row in found.rows:
        values = []
        for name in measures:
            value = row.values[name]
            star = " *" if best[name] is row else ""
            values.append("-" if value is None else value.text() + star)
        rows.append([row.name, *values, row.seeds(), row.minutes()])
    return header, rows


def _table(found: GridTable) -> list[str]:
    header, rows = table_rows(found)
    cells = [[escaped(row[0]), *(_bold(cell) for cell in row[1:])] for row in rows]
    lines = [f"## {escaped(found.title)}", "", *table(header, cells)]
    remarks = found.remarks()
    return [*lines, "", escaped(" ".join(remarks))] if remarks else lines


def _bold(cell: str) -> str:
    return f"**{cell[:-2]}**" if cell.endswith(" *") else escaped(cell)


def _methods(content: GridContent) -> list[str]:
    rows = [[escaped(name), escaped(words)] for name, words in content.methods.items()]
    return table(["method", "options beside the common ones"], rows)


def _tuning(choices: Sequence[TuningChoice]) -> list[str]:
    rows = []
    for choice in choices:
        tried = [f"{escaped(words)}: {_score(score)}" for words, score in choice.tried]
        if choice.chosen is not None:
            tried[choice.chosen] = f"**{tried[choice.chosen]}**"
        names = (choice.method, choice.student, choice.teacher)
        rows.append([*(escaped(name) for name in names), ", ".join(tried)])
    return table(["method", "student", "teacher", "accuracy on held-out training images"], rows)


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
