"""Pages in a real browser: nothing is fetched, nothing complains, all of it can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.reports.page import comparison_page, run_page

_FILLED = """[...document.images].every(i => i.complete && i.naturalWidth > 0)"""


@pytest.fixture
def page(full_run, tmp_path: Path) -> Path:
    """Return a page with every section; its strings are hostile and long."""
    file = tmp_path / "report.html"
    file.write_text(run_page(full_run), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_whole_at_any_width_in_light_and_dark(
    browser, contrast, page, tmp_path, width, dark
):
    browser.open(page, width=width, dark=dark)
    assert browser.problems == []
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate(_FILLED)
    ratio, where = browser.evaluate(contrast)
    assert ratio >= 4.5, where
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("L"), float)
    assert (pixels[-50:].mean() < 80) == dark
    assert len(np.unique(pixels)) > 20  # text is there, not one color


def test_sections_are_seen_and_wide_ones_scroll_in_their_own_box(browser, page):
    browser.open(page, width=390)
    shown = "[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect())"
    boxes = browser.evaluate(f"{shown}.map(b => [b.width, b.height])")
    assert len(boxes) == 6
    assert all(width > 300 and height > 100 for width, height in boxes)
    heat = "document.querySelector('.heat').parentElement"
    assert browser.evaluate(f"{heat}.scrollWidth > {heat}.clientWidth")
    columns = "getComputedStyle(document.querySelector('.figures')).gridTemplateColumns"
    assert len(browser.evaluate(columns).split()) == 1
    browser.open(page, width=1280)
    assert len(browser.evaluate(columns).split()) >= 2


def test_the_keyboard_reaches_the_content_and_focus_is_seen(browser, page):
    browser.open(page)
    browser.press("Tab", 9)
    active = "document.activeElement"
    assert browser.evaluate(f"{active}.className") == "skip"
    assert browser.evaluate(f"{active}.getBoundingClientRect().left") >= 0
    assert browser.evaluate(f"getComputedStyle({active}).outlineStyle") == "solid"
    browser.press("Enter", 13)
    browser.evaluate("0")
    assert browser.evaluate("location.hash") == "#content"
    seen = set()
    for _ in range(60):
        browser.press("Tab", 9)
        seen.add(browser.evaluate(f"{active}.tagName + '.' + {active}.className"))
    assert {"SUMMARY.", "DIV.scroll"} <= seen


def test_right_and_wrong_frames_differ_without_color(browser, page):
    browser.open(page)
    style = "getComputedStyle(document.querySelector('.{} .frame')).borderStyle"
    assert browser.evaluate(style.format("right")) == "solid"
    assert browser.evaluate(style.format("wrong")) == "dashed"


@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_of_a_row_are_of_one_size_whatever_their_names(browser, page, width):
    browser.open(page, width=width)
    frames = "[...document.querySelectorAll('.query .side .frame')]"
    boxes = f"{frames}.map(f => f.getBoundingClientRect()).map(b => [b.width, b.height])"
    sizes = np.array(browser.evaluate(boxes)).reshape(8, 5, 2)  # rows of five
    assert np.ptp(sizes, axis=1).max() < 1
    assert sizes.min() > 50


def test_the_browser_tells_of_what_goes_wrong(browser, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text("<img src='absent.png'><script>console.error('no'); absent()</script>")
    browser.open(file)
    assert len(browser.requests) == 2
    assert any("console" in problem or "absent" in problem for problem in browser.problems)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_of_many_runs_stays_within_the_page(browser, full_run, tmp_path, width):
    file = tmp_path / "comparison.html"
    runs = [replace(full_run, name=f"run-with-a-long-name-{number}") for number in range(9)]
    file.write_text(comparison_page(runs), encoding="utf-8")
    browser.open(file, width=width)
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
