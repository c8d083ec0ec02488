"""The results of a comparison: its tables and curves, and one file of all results.

comparison.json has the grid, every metric of every trial and the tables. It can be kept in place of
the directory: `distill compare FILE --table` prints its tables, and --output continues the
comparison in another directory. The file may be older than today's options, so the tables use only
what it records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from distill.comparison.grid import BUDGET, Method, parse_grid
from distill.comparison.trial import Comparison, Trial, TrialStatus, best_score, parse_status
from distill.errors import DistillError
from distill.parsing import checked, parse_json
from distill.reports.comparison_tables import (
    MEASURES,
    ComparisonContent,
    ComparisonTable,
    Spread,
    TableRow,
    TrialLine,
    TuningChoice,
    spread_of,
)
from distill.reports.content import Curves, Series
from distill.terminal import described_seconds

FORMAT = "distill comparison, version 2"  # version 1 had no grid
_MAX_CURVES = 7  # of a figure: the number of colors and dashes
_RECORD = ("state", "options", "metrics", "holdout_curve", "seconds", "error")


def read_results(comparison: Comparison) -> ComparisonContent:
    """Return the content of the tables and the page; trials may be missing."""
    grid, statuses = comparison.grid, comparison.statuses
    places = [(student, teacher) for teacher in grid.teachers for student in grid.students]
    compared = [trial for trial in comparison.trials.values() if trial.tuning is None]
    by_place = {
        place: [trial for trial in compared if (trial.student, trial.teacher) == place]
        for place in places
    }
    return ComparisonContent(
        name=comparison.path.resolve().name,
        budget=_budget(comparison),
        tables=[_table(comparison, place, trials) for place, trials in by_place.items()],
        methods={method.name: _method_words(method) for method in grid.methods},
        tuning=_tuning(comparison),
        tuning_facts=_tuning_facts(comparison),
        failed=[
            (name, statuses[name].error or "")
            for name in comparison.trials
            if comparison.state(name) == "failed"
        ],
        curves=[held_out_curves(trials, statuses) for trials in by_place.values()],
        trials=[_line(trial, statuses.get(trial.name)) for trial in comparison.trials.values()],
        notes=_notes(comparison),
    )


def results_json(comparison: Comparison, content: ComparisonContent) -> str:
    """Return grid, tables and every trial as JSON, a line for each row and trial."""
    head = {
        "format": FORMAT,
        "name": content.name,
        "grid": comparison.grid.content,
        "budget": content.budget,
        "tuning": [asdict(choice) for choice in content.tuning],
    }
    rows = [
        {
            "student": table.student,
            "teacher": table.teacher,
            **asdict(row),
            "best": [name for name in table.measures() if table.best(name) is row],
        }
        for table in content.tables
        for row in table.rows
    ]
    trials = []
    for trial in comparison.trials.values():
        status = comparison.statuses.get(trial.name)
        trials.append(
            {
                "name": trial.name,
                "method": trial.method.name,
                "student": trial.student,
                "teacher": trial.teacher,
                "seed": trial.seed,
                "tuning": trial.tuning,
                "chosen": comparison.tuned_values(trial),
                "holdout_nn_accuracy": status and status.holdout_nn_accuracy,
                **({"state": "open"} if status is None else asdict(status)),
            }
        )
    text = json.dumps(head, indent=1, default=str).removesuffix("\n}")
    for name, lines in (("rows", rows), ("trials", trials)):
        text += f',\n "{name}": [\n  ' + ",\n  ".join(map(json.dumps, lines)) + "\n ]"
    return text + "\n}\n"


def read_results_file(file: Path, path: Path | None) -> Comparison:
    """Read comparison.json, under any name.

    Args:
        file: The file.
        path: The directory in which to continue the comparison; None: only show it.

    Raises:
        DistillError: It cannot be read, is another kind of file, or of a version without a grid.
    """
    try:
        content = checked(parse_json(file.read_text(encoding="utf-8")), dict[str, Any])
        if content.get("format") != FORMAT and "cells" in content:
            raise DistillError(
                f"{file} was written by an older version and holds no grid; name the directory of "
                "the comparison"
            )
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        grid = parse_grid(checked(content.get("grid"), dict[str, Any]), source=f"grid of {file}")
        trials = checked(content.get("trials"), list[dict[str, Any]])
        known = {
            str(trial.get("name")): parse_status({n: trial[n] for n in _RECORD if n in trial})
            for trial in trials
            if trial.get("state") != "open"
        }
        name = checked(content.get("name"), str)
    except OSError as error:
        raise DistillError(f"{file} cannot be read: {error.strerror or error}") from error
    except DistillError:
        raise
    except ValueError as error:
        raise DistillError(
            f"{file} holds no results of a comparison ({error}); name such a file, the directory "
            "of a comparison, or the YAML file of a grid"
        ) from error
    return Comparison(grid, path or file.parent / Path(name).name, known)


def _table(
    comparison: Comparison, place: tuple[str, str], trials: Sequence[Trial]
) -> ComparisonTable:
    grid = comparison.grid
    measures = [name for name in MEASURES if grid.linear or name != "linear_accuracy"]
    rows = []
    for method in sorted(grid.methods, key=lambda method: method.is_reference):
        mine = [trial for trial in trials if trial.method is method]
        done = [
            comparison.statuses[trial.name].metrics
            for trial in mine
            if comparison.state(trial.name) == "done"
        ]
        seconds = [metrics["train_seconds"] for metrics in done if "train_seconds" in metrics]
        row = TableRow(
            name=method.name,
            values=_spreads(done, measures),
            is_reference=method.is_reference,
            num_done=len(done),
            num_failed=sum(comparison.state(trial.name) == "failed" for trial in mine),
            num_asked=len(mine),
            train_seconds=mean(seconds) if seconds else None,
        )
        rows.append(row)
    # One trial of each seed has measured the teacher and the untrained student.
    by_seed: dict[int, Mapping[str, float]] = {}
    for trial in sorted(trials, key=_is_unusual):
        status = comparison.statuses.get(trial.name)
        if status is not None and "untrained_nn_accuracy" in status.metrics:
            by_seed.setdefault(trial.seed, status.metrics)
    before = [by_seed[seed] for seed in sorted(by_seed)]
    untrained = _spreads(before, measures, "untrained_")
    teacher = _spreads(before[:1], measures, "teacher_")
    rows.append(TableRow("untrained student", untrained, is_reference=True))
    rows.append(TableRow("teacher", teacher, is_reference=True))
    return ComparisonTable(*place, rows)


def _spreads(
    metrics: Sequence[Mapping[str, float]], measures: Sequence[str], prefix: str = ""
) -> dict[str, Spread | None]:
    return {
        name: spread_of([one[prefix + name] for one in metrics if prefix + name in one])
        for name in measures
    }


def _is_unusual(trial: Trial) -> tuple[bool, bool, bool]:
    """Sort trials whose untrained student or teacher is not the default last."""
    options = trial.options
    return (
        options.get("teacher_view") == "student",  # measured at the student's size
        options.get("student_weights") is not None,
        options.get("student_init") is not None,
    )


def held_out_curves(trials: Sequence[Trial], statuses: Mapping[str, TrialStatus]) -> list[Curves]:
    """Return curves of the accuracy on held-out training images, the mean over seeds.

    Unlike the losses it is comparable between methods. A figure has at most seven methods; all
    figures share the range of the vertical axis.

    Args:
        trials: Of one student and one teacher.
        statuses: By name.
    """
    by_method: dict[str, list[Sequence[tuple[int, float]]]] = {}
    for trial in trials:
        status = statuses.get(trial.name)
        if status is not None and status.state == "done":
            by_method.setdefault(trial.method.name, []).append(status.holdout_curve)
    series = [
        Series(name, *zip(*points, strict=True))
        for name, runs in by_method.items()
        if (points := _mean_curve(runs))
    ]
    if not series:
        return []
    size = math.ceil(len(series) / math.ceil(len(series) / _MAX_CURVES))
    parts = [series[start : start + size] for start in range(0, len(series), size)]
    extremes = [extreme(one.y) for one in series for extreme in (min, max)]
    return [
        Curves(
            "Held-out training images" + (f", {number} of {len(parts)}" if parts[1:] else ""),
            "epoch",
            "nearest-neighbor accuracy, mean over seeds",
            part,
            y_also=extremes,
        )
        for number, part in enumerate(parts, start=1)
    ]


def _mean_curve(runs: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return the mean over runs at the epochs that all runs have."""
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run:
            by_epoch.setdefault(epoch, []).append(value)
    return [(epoch, mean(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == len(runs)]


def _budget(comparison: Comparison) -> dict[str, str]:
    ended = [status for status in comparison.statuses.values() if status.state != "started"]
    options = _options_of(comparison, is_tuning=False)
    words = {
        name.replace("_", " "): "by data" if options.get(name) is None else str(options[name])
        for name in BUDGET
        if name != "on_bad_image"
    }
    return {
        **words,
        "seeds": ", ".join(map(str, comparison.grid.seeds)),
        "runs made": f"{len(ended)} of {len(comparison.trials)}",
        "time": described_seconds(sum(status.seconds for status in ended)),
    }


def _options_of(comparison: Comparison, *, is_tuning: bool) -> Mapping[str, Any]:
    """Return the options of the first trial that has started, else of the first in the grid."""
    trials = [t for t in comparison.trials.values() if (t.tuning is not None) == is_tuning]
    made = [trial for trial in trials if trial.name in comparison.statuses]
    if made:
        return comparison.statuses[made[0].name].options
    return trials[0].options if trials else {}


def _tuning(comparison: Comparison) -> list[TuningChoice]:
    by_place: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in comparison.trials.values():
        if trial.tuning is not None:
            by_place.setdefault(trial.place, []).append(trial)
    choices = []
    for place, trials in by_place.items():
        statuses = [comparison.statuses.get(trial.name) for trial in trials]
        scores = [None if one is None else one.holdout_nn_accuracy for one in statuses]
        is_open = any(comparison.is_open(trial.name) for trial in trials)
        settings = [_setting(trial.tuning or {}) for trial in trials]
        chosen = None if is_open else best_score(scores)
        choices.append(TuningChoice(*place, list(zip(settings, scores, strict=True)), chosen))
    return choices


def _tuning_facts(comparison: Comparison) -> str:
    options = _options_of(comparison, is_tuning=True)
    if not options:
        return ""
    epochs = options.get("epochs")
    length = "as many epochs as the others" if epochs is None else f"{epochs} epochs"
    share = options.get("holdout")
    images = "" if share is None else f", {100 * share:g} % of them,"
    return (
        f"Each value was tried in one run of {length} with seed {comparison.grid.seeds[0]}; the "
        "value whose student had the highest nearest-neighbor accuracy on the held-out training "
        f"images{images or ','} was used for all seeds. Validation images were not used."
    )


def _line(trial: Trial, status: TrialStatus | None) -> TrialLine:
    if status is None:
        return TrialLine(trial.name, "open", "", "")
    if trial.tuning is not None:
        values = [status.holdout_nn_accuracy]
    else:
        values = [status.metrics.get(name) for name in MEASURES]
    numbers = ", ".join(f"{value:.3f}" for value in values if value is not None)
    took = described_seconds(status.seconds) if status.seconds else ""
    return TrialLine(trial.name, status.state, numbers, took)


def _notes(comparison: Comparison) -> list[str]:
    grid = comparison.grid
    common = {name: value for name, value in grid.common.items() if name not in BUDGET}
    notes = [f"All runs: {_setting(common)}."] if common else []
    notes += [f"With {name}: {_setting(options)}." for name, options in grid.per_student.items()]
    notes += ["Only trained students have a linear accuracy."] if grid.linear else []
    references = [method.name for method in grid.methods if method.is_reference]
    return notes + ([f"For reference only: {', '.join(references)}."] if references else [])


def _method_words(method: Method) -> str:
    parts = [_setting(method.options)] if method.options else ["the defaults"]
    parts += [f"{name}: {_setting(options)}" for name, options in method.per_student.items()]
    parts += [f"tuned: {_setting(method.tune)}"] if method.tune else []
    return "; ".join(parts)


def _setting(options: Mapping[str, Any]) -> str:
    def plain(value: Any) -> str:
        if isinstance(value, str):
            return value
        return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]

    return ", ".join(f"{name} {plain(value)}" for name, value in options.items())
