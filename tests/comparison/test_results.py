from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.comparison.compare import CompareOptions, compare
from distill.comparison.grid import Method
from distill.comparison.results import held_out_curves
from distill.comparison.trial import Trial, TrialStatus
from distill.errors import DistillError
from distill.reports.charts import line_chart

DOCS = Path(__file__).parents[2] / "docs"


def trial(method: str, seed: int) -> Trial:
    return Trial(f"{method}-{seed}", Method(method, {}, {}, {}), "s", "t", seed, {})


def curve(*points: tuple[int, float], state: str = "done") -> TrialStatus:
    return TrialStatus(state, {}, holdout_curve=points)  # type: ignore[arg-type]


def test_a_curve_is_the_mean_over_seeds_at_the_epochs_that_all_have():
    statuses = {
        "m-0": curve((4, 0.2), (8, 0.4)),
        "m-1": curve((4, 0.4), (6, 0.5), (8, 0.8)),
        "m-2": curve((4, 0.0), state="failed"),
    }
    (figure,) = held_out_curves([trial("m", seed) for seed in range(4)], statuses)
    (series,) = figure.series
    assert (series.name, list(series.x)) == ("m", [4, 8])
    assert list(series.y) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize(("number", "sizes"), [(0, []), (7, [7]), (8, [4, 4]), (15, [5, 5, 5])])
def test_figures_are_filled_evenly_and_have_one_vertical_axis(number, sizes):
    trials = [trial(f"m{i}", 0) for i in range(number)]
    statuses = {one.name: curve((4, 0.01 * i), (8, 0.05 * i)) for i, one in enumerate(trials)}
    figures = held_out_curves(trials, statuses)
    assert [len(figure.series) for figure in figures] == sizes
    names = [series.name for figure in figures for series in figure.series]
    assert names == [one.method.name for one in trials]
    assert len({line_chart(figure).y_ticks for figure in figures}) == min(number, 1)


def test_the_results_file_holds_all_and_the_comparison_goes_on_from_it(
    trainer, write_grid, output, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    whole = compare(write_grid(), CompareOptions(output))
    kept = tmp_path / "kept.json"
    kept.write_bytes((output / "comparison.json").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    shown = compare(kept, CompareOptions(table=True))
    assert (shown.content, shown.output) == (whole.content, None)
    assert compare(kept, CompareOptions(dry_run=True)).num_open == 0
    assert sorted(tmp_path.rglob("*")) == before
    compare(kept, CompareOptions(tmp_path / "page", table=True))
    assert (tmp_path / "page" / "comparison.html").exists()
    # One trial is left out: it alone is made, elsewhere.
    content = json.loads(kept.read_text())
    content["trials"][3] = {**content["trials"][3], "state": "open"}
    kept.write_text(json.dumps(content))
    trainer.finished.clear()
    result = compare(kept, CompareOptions(tmp_path / "other"))
    assert trainer.finished == {trainer.names[3]: 1}
    assert result.content.tables == whole.content.tables
    assert compare(tmp_path / "other", CompareOptions(resume=True)).num_open == 0


def test_a_received_file_writes_nothing_outside_its_directory(
    trainer, write_grid, output, tmp_path
):
    compare(write_grid(), CompareOptions(output))
    content = json.loads((output / "comparison.json").read_text())
    content["name"] = "../../evil"
    content["trials"].append({**content["trials"][0], "name": "../../../evil"})
    file = tmp_path / "received.json"
    file.write_text(json.dumps(content))
    assert compare(file, CompareOptions(table=True)).content.name == "evil"
    compare(file, CompareOptions(tmp_path / "deep" / "below"))
    assert not [path for path in tmp_path.rglob("*evil*") if "deep" not in path.parts]
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"below"}
    records = {path.stem for path in (tmp_path / "deep/below/trials").iterdir()}
    assert records == set(trainer.names)


def test_other_files_are_refused_with_the_remedy(tmp_path):
    file = tmp_path / "x.json"
    for text, words in (
        ("{", "holds no results of a comparison"),
        ('{"format": 1}', "holds no results of a comparison"),
        ('{"tables": [], "cells": []}', "older version and holds no grid; name the directory"),
    ):
        file.write_text(text)
        with pytest.raises(DistillError, match=words):
            compare(file, CompareOptions(table=True))
    with pytest.raises(DistillError, match="cannot be read"):
        compare(tmp_path / "absent.json", CompareOptions(table=True))


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "ablation"])
def test_the_committed_results_give_the_tables_of_the_documentation(name):
    content = compare(DOCS / "comparison" / f"{name}.json", CompareOptions(table=True)).content
    lines = (DOCS / "comparison.md").read_text().splitlines()
    for table in content.tables:
        assert all(row.num_done == row.num_asked for row in table.rows)
        row = next(row for row in table.rows if row.name == "default recipe")
        numbers = [value.text() for value in row.values.values() if value is not None]
        told = [line for line in lines if line.startswith("| default recipe |")]
        assert any(all(number in line for number in numbers) for line in told)
