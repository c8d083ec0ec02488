"""The page about a comparison: what it says, and how a browser shows it."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from distill.reports.comparison_tables import (
    RULE,
    ComparisonContent,
    ComparisonTable,
    Spread,
    TableRow,
    TrialLine,
    TuningChoice,
    best_of,
    comparison_markdown,
    spread_of,
)
from distill.reports.content import Curves, Series
from distill.reports.page import grid_page

EVIL = "<script>alert(1)</script>\"'&"


def row(name: str, mean: float, std: float | None, *, done: int = 3, failed: int = 0) -> TableRow:
    values = {"nn_accuracy": Spread(mean, std, done), "cluster_alignment": None}
    return TableRow(name, values, False, done, failed, 3, 90.0)


@pytest.fixture
def content() -> ComparisonContent:
    untrained = {"nn_accuracy": Spread(0.3, 0.01, 3), "cluster_alignment": None}
    rows = [
        row("ours", 0.7, 0.01),
        row(EVIL, 0.6, 0.02, done=2, failed=1),
        replace(row("supervised", 0.9, 0.01), is_reference=True),
        TableRow("untrained student", untrained, is_reference=True),
    ]
    series = [Series(name, [1, 2, 3], [0.1, 0.2, 0.3]) for name in ("ours", EVIL)]
    curves = Curves("Held-out training images", "epoch", "accuracy", series)
    table = ComparisonTable("resnet18", EVIL, rows)
    return ComparisonContent(
        name=EVIL,
        budget={"epochs": "8", "seeds": "0, 1, 2", "data": EVIL},
        tables=[table, replace(table, student="alexnet")],
        methods={"ours": "the defaults", EVIL: "temperature 0.1 " * 9},
        tuning=[TuningChoice(EVIL, "resnet18", "t", [("rate 1", 0.5), ("rate 2", None)], 0)],
        tuning_facts="Each value was tried once.",
        failed=[("a-run", f"the loss is nan {EVIL}")],
        curves=[[curves], []],
        trials=[TrialLine(EVIL * 3, "done", "0.700", "1 min 2 s")] * 4,
        notes=["A note."],
    )


def table(*rows: TableRow) -> ComparisonTable:
    return ComparisonTable("s", "t", rows)


def test_the_best_is_marked_among_methods_and_references_are_not_compared(content):
    page = grid_page(content)
    assert page.count('class="best"') == 3  # ours in two tables, and what tuning took
    assert re.search(r'<th scope="row">ours</th>\s*<td class="best">0.700 ± 0.010', page)
    assert RULE in page.replace("&#39;", "'")
    assert content.tables[0].best("nn_accuracy") is content.tables[0].rows[0]


def test_everything_of_a_comparison_is_on_its_page_and_no_script(content):
    page = grid_page(content)
    assert "<script" not in page
    assert "default-src 'none'" in page
    found = re.findall(r'<section aria-labelledby="(\w+)">', page)
    assert found == ["tables", "bars", "curves", "methods", "tuning", "runs"]
    for words in ("2 of 3, 1 failed", "the loss is nan", "Each value was tried", "A note.", "1.5"):
        assert words in page
    assert "Runs failed, and are left out of the means" in page
    assert page.count("<rect") == 6  # a bar for each method and the supervised student
    assert "no run has checked held-out images yet" in page


def test_one_seed_marks_nothing_and_says_so():
    found = table(row("a", 0.9, None, done=1), row("b", 0.1, None, done=1))
    assert found.best("nn_accuracy") is None
    assert any("All methods stand on one seed" in remark for remark in found.remarks())
    assert any("Partial: 4 of 6 runs" in remark for remark in found.remarks())
    mixed = table(row("a", 0.9, 0.1), row("b", 0.1, None, done=1))
    assert any(remark.startswith("b stands on one seed") for remark in mixed.remarks())
    assert table(row("a", 0.9, 0.1), row("b", 0.1, 0.1)).remarks() == []
    fewer = replace(row("b", 0.1, 0.1), values={"nn_accuracy": Spread(0.1, 0.1, 2)})
    more = replace(row("a", 0.9, 0.1), values={"nn_accuracy": Spread(0.9, 0.1, 3)})
    assert table(more, fewer).remarks() == ["Not every run has measured nearest neighbor: b."]


def test_markdown_has_the_same_numbers_and_text_stays_text(content):
    text = comparison_markdown(content)
    assert "| ours | **0.700 ± 0.010** | - | 3 | 1.5 |" in text
    assert "| untrained student | 0.300 ± 0.010 | - |  |  |" in text
    assert "<script" not in text
    assert "**rate 1: 0.500**, rate 2: -" in text
    assert "a-run: the loss is nan" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6, 5, 3}
    assert "| ours | the defaults |" in text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_whole_at_any_width_in_light_and_dark(
    browser, contrast, content, tmp_path, width, dark
):
    file = tmp_path / "comparison.html"
    file.write_text(grid_page(content), encoding="utf-8")
    browser.open(file, width=width, dark=dark)
    assert browser.problems == []
    assert browser.requests == [file.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    share, where = browser.evaluate(contrast)
    assert share >= 4.5, where
    # Texts of a figure lie inside it, the value at the end of a bar among them.
    outside = """[...document.querySelectorAll('svg text')].filter(t => {
      const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
      return a.left < b.left - 1 || a.right > b.right + 1; }).map(t => t.textContent)"""
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate(outside) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_mean_and_standard_deviation_with_n_minus_1():
    spread = spread_of([0.61, 0.64, 0.58])
    assert spread is not None
    mean = (0.61 + 0.64 + 0.58) / 3
    squares = (0.61 - mean) ** 2 + (0.64 - mean) ** 2 + (0.58 - mean) ** 2
    assert (spread.mean, spread.num) == (pytest.approx(mean), 3)
    assert spread.std == pytest.approx(math.sqrt(squares / 2))
    assert spread.text() == "0.610 ± 0.030"
    assert spread_of([0.5]) == Spread(0.5, None, 1)
    assert spread_of([]) is None


def test_the_best_must_be_above_every_other_by_more_than_the_spread():
    # sqrt(0.03^2 + 0.04^2) = 0.05
    second = Spread(0.60, 0.04, 3)
    assert best_of([second, Spread(0.651, 0.03, 3)]) == 1
    assert best_of([second, Spread(0.649, 0.03, 3)]) is None
    # Every other counts, not the next alone: 0.1 away and 0.5 wide.
    assert best_of([Spread(0.1, 0.5, 3), Spread(0.651, 0.03, 3), second]) == 1
    assert best_of([Spread(0.551, 0.5, 3), Spread(0.651, 0.03, 3), second]) is None
    assert best_of([second, Spread(0.63, 0.0, 3), Spread(0.651, 0.03, 3)]) is None
    assert best_of([None, second, Spread(0.651, 0.03, 3)]) == 2
    # Equal means, lonely ones and single seeds are not best.
    assert best_of([Spread(0.5, 0.0, 3), Spread(0.5, 0.0, 3)]) is None
    assert best_of([Spread(0.5, 0.0, 3), None]) is None
    assert best_of([Spread(0.9, 0.01, 3), Spread(0.2, 0.01, 3), Spread(0.1, None, 1)]) is None
    assert best_of([]) is None
