"""What the page says, read as a browser reads it; how it looks is in test_browser.py."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from distill.reports import charts
from distill.reports.content import Curves, RunContent, Series
from distill.reports.page import comparison_page, overlaid, run_page

EVIL = "<script>alert(1)</script>\"'&"
EMPTY = RunContent("run", {}, None, {}, {})
_VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects elements, texts and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.stack: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=["run", "comparison"])
def page(request, full_run) -> str:
    if request.param == "run":
        return run_page(full_run)
    return comparison_page([full_run, replace(full_run, name="second")])


def test_no_string_from_data_becomes_markup(page):
    assert "<script" not in page
    reader = Reader(page)
    assert reader.stack == []
    assert EVIL in reader.text
    names = {name for _, attributes in reader.elements for name in attributes}
    assert not any(name.startswith("on") for name in names)


def test_nothing_is_fetched(page):
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, name, target)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_a_screen_reader_finds_its_way(page):
    """References lead to an element, pictures have words, headings skip no level."""
    reader = Reader(page)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in reader.having("a")]
    assert links[0] == "#content"
    assert {link.removeprefix("#") for link in links} <= set(ids)
    for _, attributes in reader.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    assert all(attributes.get("alt") for attributes in reader.having("img"))
    for attributes in reader.having("svg"):
        named = attributes.get("role") == "img" and attributes.get("aria-labelledby")
        assert named or attributes.get("aria-hidden") == "true"
    scrolling = [a for _, a in reader.elements if "scroll" in (a.get("class") or "").split()]
    assert scrolling
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolling)
    levels = [int(tag[1]) for tag, _ in reader.elements if tag in ("h1", "h2", "h3", "h4")]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_axes_are_drawn_where_the_curves_were_laid_out(page):
    frame = f'viewBox="0 0 {charts.LINE_WIDTH} {charts.HEIGHT}"'
    svg = page.partition(frame)[2].partition("</svg>")[0]
    assert f'd="M{charts.LINE_LEFT} {charts.BOTTOM}H{charts.LINE_RIGHT}"' in svg
    assert f'd="M{charts.LINE_LEFT} {charts.LINE_TOP}L' in svg  # the loss falls


def test_right_and_wrong_differ_in_more_than_color(full_run):
    reader = Reader(run_page(full_run))
    classes = Counter(a.get("class") for _, a in reader.elements)
    assert classes["picture right"] == 9 + 4 * 3
    assert classes["picture wrong"] == 9 + 4 * 7
    assert reader.text.count("✓") == classes["picture right"]
    assert reader.text.count("✗") == classes["picture wrong"]
    alts = Counter((a["alt"] or "").rpartition(", ")[2] for a in reader.having("img"))
    assert alts["right"] == classes["picture right"]
    assert alts["wrong"] == classes["picture wrong"]
    assert alts[EVIL] == 4  # queries


def test_the_teachers_neighbors_stand_above_the_students(full_run):
    page = run_page(full_run)
    assert page.index(">teacher</h4>") < page.index(">student</h4>")
    query = replace(full_run.neighbors.random[0], teacher=None)
    alone = replace(full_run.neighbors, random=[query], wrong=[])
    page = run_page(replace(full_run, neighbors=alone))
    assert ">teacher</h4>" not in page
    assert "The teacher's neighbors are left out: &lt;script&gt;" in page


def test_a_run_without_anything_says_so():
    reader = Reader(run_page(EMPTY))
    assert reader.text.count("Left out:") == 5
    assert "Left out: nothing has been measured yet." in reader.text
    why = {"clusters": "no labels <b>", "map": "too few", "neighbors": "n", "summary": "s"}
    reader = Reader(run_page(replace(EMPTY, left_out=why)))
    for reason in why.values():
        assert f"Left out: {reason}." in reader.text
    assert "robustness" not in reader.text.lower()


def test_the_summary_table_says_what_numbers_mean_and_marks_the_best(full_run):
    reader = Reader(run_page(full_run))
    words = "share of the validation images that get their own class from the nearest training"
    assert f"nn_accuracy {words} image by cosine 75.0% (best) 50.0% -" in reader.text
    assert [a.get("class") for a in reader.having("td")].count("best") == 1


def test_a_comparison_overlays_curves_and_lists_what_differs():
    curves = [Curves("Loss", "step", "loss", [Series("loss", [1, 2], [2.0, 1.0])])]
    options = {"data": "d", "epochs": "3"}
    first = RunContent("a", {"Data": "d"}, None, options, {"nn_accuracy": 0.5}, curves)
    second = replace(
        first,
        name="b",
        metrics={"nn_accuracy": 0.25, "surprise": 0.5},
        options={"data": "d", "epochs": "9", "output": "z"},
        robustness=Curves("Errors", "severity", "e", [Series("student", [1], [0.5])] * 2, True),
    )
    loss, errors = overlaid([first, second])
    assert [series.name for series in loss.series] == ["a", "b"]
    assert (loss.title, loss.is_share) == ("Loss", False)
    assert [series.name for series in errors.series] == ["b, student", "b, student"]
    assert errors.is_share
    reader = Reader(comparison_page([first, second]))
    for words in ("by cosine 50.0% (best) 25.0%", "surprise - 0.5", "epochs 3 9", "Data d d"):
        assert words in reader.text
    assert "output" not in reader.text
