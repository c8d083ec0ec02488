"""A comparison's sittings."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.comparison import child, sitting
from distill.comparison.child import Request, perform
from distill.comparison.job import compare
from distill.comparison.options import CompareOptions
from distill.errors import DistillError, NonFiniteLossError


def test_all_runs_are_made_measured_and_tabled(trainer, write_grid, output):
    result = compare(write_grid(), CompareOptions(output))
    assert (result.num_runs, result.num_open, result.num_failed) == (4, 0, 0)
    assert trainer.begun == trainer.finished == trainer.linear == Counter(trainer.names)
    table = result.content.tables[0]
    one, two, untrained, teacher = table.rows
    assert one.values["nn_accuracy"].mean == pytest.approx(0.505)
    assert one.values["nn_accuracy"].std == pytest.approx(0.01 / 2**0.5)
    assert untrained.values["nn_accuracy"].mean == pytest.approx(0.35)
    assert untrained.values["linear_accuracy"] is None
    assert (teacher.values["nn_accuracy"].mean, teacher.values["nn_accuracy"].std) == (0.95, None)
    assert table.best("nn_accuracy") is two
    assert table.best("linear_accuracy") is None  # all the same
    numbers = json.loads((output / "comparison.json").read_text())
    assert [cell["metrics"]["nn_accuracy"] for cell in numbers["cells"]] == pytest.approx(
        [0.5, 0.7, 0.51, 0.71]
    )
    assert numbers["tables"][0]["rows"][1]["best"] == ["nn_accuracy", "cluster_alignment"]
    assert "| two | 0.800 ± 0.000 | **0.705 ± 0.007** |" in (output / "comparison.md").read_text()
    assert "0.705 ± 0.007" in (output / "comparison.html").read_text()
    for made in trainer.names:
        left = {path.name for path in (output / "runs" / made).iterdir()}
        assert left - {".lock", ".metrics.json.lock"} == {
            "config.yaml",
            "metrics.json",
            "log.jsonl",
            "student.safetensors",
        }


def test_the_results_say_how_the_runs_were_trained(trainer, write_grid, output):
    common, own = {"epochs": 2, "clip_grad_norm": 7.5}, {"resnet18": {"warmup_epochs": 0}}
    compare(write_grid(common=common, per_student=own), CompareOptions(output))
    for file in ("comparison.md", "comparison.html"):
        text = (output / file).read_text().replace("\\", "")
        assert "epochs" in text
        assert "All runs: clip_grad_norm 7.5." in text
        assert "With resnet18: warmup_epochs 0." in text
        assert "variant two-queue-momentum" in text


def test_finished_runs_are_known_without_their_directories(trainer, write_grid, output):
    whole = compare(write_grid(), CompareOptions(output))
    assert [series.y for series in whole.content.curves[0][0].series] == [(0.5,), (0.5,)]
    shutil.rmtree(output / "runs")
    (output / "comparison.json").unlink()
    (output / "cells" / f"{trainer.names[3]}.json").unlink()
    result = compare(output, CompareOptions(resume=True))
    assert result.content.tables == whole.content.tables
    assert result.content.curves == whole.content.curves
    assert trainer.finished == Counter([*trainer.names, trainer.names[3]])


def test_checkpoints_are_kept_when_asked(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output, keep_checkpoints=True))
    assert len(list(output.glob("runs/*/checkpoints/*.safetensors"))) == 4


MOMENTS = ["empty", "begun", "half", "unmeasured", "trained", "evaluation", "linear"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_sitting_that_is_killed_goes_on_and_nothing_is_lost(trainer, write_grid, output, moment):
    grid, victim = write_grid(), trainer.names[1]
    whole = compare(grid, CompareOptions(output.with_name("whole")))
    for counter in (trainer.begun, trainer.finished, trainer.linear):
        counter.clear()
    trainer.at[victim, moment] = trainer.killed()
    with pytest.raises(trainer.killed):
        compare(grid, CompareOptions(output))
    result = compare(grid, CompareOptions(output, resume=True))
    assert result.content.tables == whole.content.tables
    assert (result.num_open, result.num_failed) == (0, 0)
    assert trainer.begun == trainer.finished == trainer.linear == Counter(trainer.names)
    assert not list(output.glob("runs/*/checkpoints"))


def test_a_kill_between_the_outcome_and_the_cleaning(trainer, write_grid, output, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            child, "remove_checkpoints", lambda run: (_ for _ in ()).throw(trainer.killed)
        )
        with pytest.raises(trainer.killed):
            compare(write_grid(), CompareOptions(output))
    assert len(list(output.glob("runs/*/checkpoints/*.safetensors"))) == 1
    compare(write_grid(), CompareOptions(output, resume=True))
    assert trainer.finished == Counter(trainer.names)
    assert not list(output.glob("runs/*/checkpoints/*.safetensors"))


def test_a_process_that_is_killed_leaves_its_run_open_and_the_others_go_on(
    trainer, write_grid, output, monkeypatch, capsys
):
    with monkeypatch.context() as patch:

        def launch(request: Request, stop: Any, slot: Any) -> int:
            return -9 if Path(request.run).name == trainer.names[1] else perform(request)

        patch.setattr(sitting, "launch_process", launch)
        result = compare(write_grid(), CompareOptions(output))
    assert (result.num_open, result.num_failed) == (1, 0)
    assert f"ended by SIGKILL: {trainer.names[1]}" in capsys.readouterr().out
    assert any("Partial: 1 of 4" in remark for remark in result.content.tables[0].remarks())
    assert "| two | 0.800 | 0.710 | 0.355 | 1 of 2 |" in (output / "comparison.md").read_text()
    assert compare(write_grid(), CompareOptions(output, resume=True)).num_open == 0


def test_a_stop_ends_the_sitting_with_the_run_that_is_told(
    trainer, write_grid, output, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("distill.comparison.sitting.time.monotonic", lambda: now[0])

    def launch(request: Request, should_stop: Callable[[], bool], slot: Any) -> int:
        if Path(request.run).name == trainer.names[1]:
            assert not should_stop()
            now[0] = 61.0
            assert should_stop()
            trainer.at[trainer.names[1], "half"] = "SIGTERM"
        return perform(request)

    monkeypatch.setattr(sitting, "launch_process", launch)
    result = compare(write_grid(), CompareOptions(output, stop_after=1.0))
    assert (result.stopped_by, result.num_open) == ("--stop-after", 3)
    assert result.seconds_left is not None
    assert trainer.finished == Counter(trainer.names[:1])
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: perform(request))
    assert compare(write_grid(), CompareOptions(output, resume=True)).stopped_by is None
    assert trainer.begun == trainer.finished == Counter(trainer.names)


def test_several_runs_at_a_time_wait_for_their_tuning(trainer, write_grid, output, monkeypatch):
    methods = {"one": {"tune": {"learning_rate": [0.1, 0.2]}}, "two": {}}
    grid = write_grid(methods=methods)
    whole = compare(grid, CompareOptions(output.with_name("whole")))
    trainer.finished.clear()
    both = threading.Barrier(2)
    slots, tuned, order = [], set(), []

    def launch(request: Request, stop: Any, slot: Any) -> int:
        made = Path(request.run).name
        order.append(made)
        slots.append(slot["OMP_NUM_THREADS"])
        if "tune" in made:
            both.wait(timeout=60)  # broken unless two are under way
            status = perform(request)
            tuned.add(made)
            return status
        assert "two" in made or len(tuned) == 2
        return perform(request)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sitting, "launch_process", launch)
    result = compare(grid, CompareOptions(output, jobs=2))
    assert result.content.tables == whole.content.tables
    assert (result.num_open, set(trainer.finished.values())) == (0, {1})
    assert len(order) == len(slots) == 6


def test_what_ends_one_run_by_force_ends_the_others(trainer, write_grid, output, monkeypatch):
    ended = []

    def launch(request: Request, should_stop: Callable[[], bool], slot: Any) -> int:
        if Path(request.run).name == trainer.names[0]:
            raise trainer.killed
        try:
            while not should_stop():
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append(Path(request.run).name)
            raise
        return 143

    monkeypatch.setattr(sitting, "launch_process", launch)
    with pytest.raises(trainer.killed):
        compare(write_grid(), CompareOptions(output, jobs=2))
    assert ended == [trainer.names[1]]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NonFiniteLossError("the loss is nan at step 7"), "the loss is nan at step 7"),
        (DistillError("no room"), "no room"),
        (KeyError("x"), "KeyError: 'x'; it is no mistake in the grid"),
    ],
)
def test_a_run_that_fails_does_not_end_the_grid(trainer, write_grid, output, error, sentence):
    grid = write_grid()
    trainer.at[trainer.names[0], "half"] = error
    result = compare(grid, CompareOptions(output))
    assert (result.num_open, result.num_failed) == (0, 1)
    assert result.content.failed == [(trainer.names[0], sentence)]
    row = result.content.tables[0].rows[0]
    assert (row.seeds(), row.values["nn_accuracy"].num) == ("1 of 2, 1 failed", 1)
    assert result.content.tables[0].best("nn_accuracy") is None
    assert sentence.replace("'", "&#39;") in (output / "comparison.html").read_text()
    again = compare(grid, CompareOptions(output, resume=True))
    assert again.num_failed == 1  # retried only when asked
    assert trainer.finished[trainer.names[0]] == 0
    mended = compare(grid, CompareOptions(output, resume=True, retry_failed=True))
    assert mended.num_failed == 0
    assert trainer.begun == trainer.finished == Counter(trainer.names)


def test_the_best_tuned_value_is_used_for_all_seeds(trainer, write_grid, output):
    trainer.held_out = {0.1: 0.6, 0.2: 0.7, 0.4: 0.7}
    methods = {"one": {"tune": {"learning_rate": [0.1, 0.2, 0.4]}}, "two": {}}
    grid = write_grid(methods=methods, tune_epochs=1, tune_holdout=0.2)
    result = compare(grid, CompareOptions(output))
    for seed in (0, 1):
        config = trainer.configs[trainer.name("one", seed)]
        assert config.optimization.learning_rate == 0.2  # the first of equals
        assert (config.optimization.epochs, config.images.holdout) == (2, 0.05)
    tuning = [made for made in trainer.finished if "tune" in made]
    assert len(tuning) == 3
    assert not set(tuning) & set(trainer.linear)
    config = trainer.configs[tuning[0]]
    assert (config.optimization.epochs, config.images.holdout, config.run.seed) == (1, 0.2, 0)
    (choice,) = result.content.tuning
    assert choice.tried[choice.chosen] == ("learning_rate 0.2", 0.7)
    assert "in one run of 1 epochs with seed 0" in result.content.tuning_facts
    assert result.content.tables[0].rows[0].num_asked == 2  # tuning runs are in no mean


def test_teacher_and_untrained_student_are_measured_once_a_seed(trainer, write_grid, output):
    methods = {"one": {"tune": {"learning_rate": [0.1]}}, "two": {}, "three": {}}
    trainer.at[trainer.name("one", 1), "half"] = DistillError(
        "no room"
    )  # fails, and the next one measures
    compare(write_grid(methods=methods), CompareOptions(output))
    measured = {name: config.run.measure for name, config in trainer.configs.items()}
    assert measured.pop("one--resnet18--pixels--tune-learning_rate-0.1") == "none"
    assert measured == {
        **{
            trainer.name("one", 0): "all",
            trainer.name("two", 0): "none",
            trainer.name("three", 0): "none",
        },
        **{
            trainer.name("one", 1): "all",
            trainer.name("three", 1): "all",
            trainer.name("two", 1): "none",
        },
    }


def test_a_student_that_starts_from_weights_does_not_speak_for_untrained_ones(
    trainer, write_grid, output, tmp_path
):
    methods = {"warm": {"student_weights": str(tmp_path / "x.safetensors")}, "one": {}, "two": {}}
    result = compare(write_grid(methods=methods, seeds=[0]), CompareOptions(output))
    measured = [trainer.configs[trainer.name(method, 0)].run.measure for method in methods]
    assert measured == ["all", "all", "none"]
    file = output / "cells" / f"{trainer.name('warm', 0)}.json"
    cell = json.loads(file.read_text())
    cell["metrics"]["untrained_nn_accuracy"] = 0.9
    file.write_text(json.dumps(cell))
    result = compare(output, CompareOptions(table=True))
    untrained = result.content.tables[0].rows[-2]
    assert untrained.values["nn_accuracy"].mean == pytest.approx(0.3)


def test_runs_that_an_earlier_sitting_left_started_measure_nothing_for_others(
    trainer, write_grid, output
):
    grid = write_grid(seeds=[0], methods={"one": {}, "two": {}})
    trainer.at[trainer.name("one", 0), "half"] = "SIGTERM"
    compare(grid, CompareOptions(output))
    cell = json.loads((output / "cells" / f"{trainer.name('one', 0)}.json").read_text())
    for left in ("one", "two"):  # and their directories are gone, as on another machine
        (output / "cells" / f"{trainer.name(left, 0)}.json").write_text(
            json.dumps({**cell, "state": "started"})
        )
        shutil.rmtree(output / "runs" / trainer.name(left, 0), ignore_errors=True)
    compare(grid, CompareOptions(output, resume=True))
    measured = [trainer.configs[trainer.name(method, 0)].run.measure for method in ("one", "two")]
    assert measured == ["all", "none"]


def test_a_tuning_run_that_fails_loses_and_without_any_the_runs_fail(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"learning_rate": [0.1, 0.2]}}})
    tuning = [f"one--resnet18--pixels--tune-learning_rate-{rate}" for rate in (0.1, 0.2)]
    trainer.at[tuning[0], "half"] = NonFiniteLossError("nan")
    result = compare(grid, CompareOptions(output))
    assert result.num_failed == 1
    assert trainer.configs[trainer.name("one", 0)].optimization.learning_rate == 0.2
    # What was used is not opened again.
    compare(grid, CompareOptions(output, resume=True, retry_failed=True))
    assert trainer.finished[tuning[0]] == 0
    for made in tuning:
        trainer.at[made, "half"] = NonFiniteLossError("nan")
    other = output.with_name("other")
    result = compare(grid, CompareOptions(other))
    assert result.num_failed == 4
    assert "no tuning run of it ended" in result.content.failed[-1][1]
    assert compare(grid, CompareOptions(other, resume=True, retry_failed=True)).num_failed == 0


def test_a_part_of_the_grid(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"temperature": [0.1, 1]}}, "two": {}})
    result = compare(grid, CompareOptions(output, only="one*seed1"))
    assert (result.num_runs, result.num_open) == (3, 0)
    assert trainer.name("one", 1) in trainer.finished
    assert not set(trainer.finished) & {
        trainer.name("one", 0),
        trainer.name("two", 0),
        trainer.name("two", 1),
    }
    assert compare(grid, CompareOptions(output, resume=True)).num_runs == 6
    assert set(trainer.finished.values()) == {1}


def test_one_seed_marks_nothing(trainer, write_grid, output):
    result = compare(write_grid(seeds=[0]), CompareOptions(output))
    assert result.content.tables[0].best("nn_accuracy") is None
    text = (output / "comparison.md").read_text()
    assert "All methods stand on one seed" in text
    assert "**" not in text


def test_without_the_linear_classifier(trainer, write_grid, output):
    result = compare(write_grid(linear=False), CompareOptions(output))
    assert not trainer.linear
    measured = [trainer.configs[name].run.measure for name in trainer.names]
    assert measured == ["all", "trained", "all", "trained"]
    assert result.content.tables[0].rows[1].values["nn_accuracy"].mean == pytest.approx(0.705)
    assert "linear" not in result.content.tables[0].measures().values()


def test_tables_are_made_again_from_what_is_there(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output, only="seed0"))
    (output / "comparison.md").unlink()
    result = compare(output, CompareOptions(table=True))
    assert result.num_open == 2
    assert "1 of 2" in (output / "comparison.md").read_text()
    assert len(trainer.finished) == 2


def test_a_dry_run_writes_nothing(trainer, write_grid, output):
    result = compare(write_grid(), CompareOptions(output, dry_run=True))
    assert (result.num_open, result.seconds_left) == (4, None)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "holds a comparison already; go on with --resume"),
        ({"resume": True, "stop_after": 0.0}, "--stop-after is 0.0"),
        ({"resume": True, "only": "zzz"}, "--only zzz matches none"),
        ({"table": True, "dry_run": True}, "leave one out"),
        ({"resume": True, "jobs": 0}, "--jobs is 0"),
    ],
)
def test_mistakes(trainer, write_grid, output, options, words):
    compare(write_grid(), CompareOptions(output))
    with pytest.raises(DistillError, match=words):
        compare(write_grid(), replace(CompareOptions(output), **options))


def test_directories_that_are_no_comparison(trainer, write_grid, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_bytes(b"")
    with pytest.raises(DistillError, match="is not empty and holds no comparison"):
        compare(write_grid(), CompareOptions(tmp_path / "full", resume=True))
    with pytest.raises(DistillError, match="holds no comparison; name one"):
        compare(tmp_path / "full", CompareOptions(table=True))
    with pytest.raises(DistillError, match="holds no comparison; --table needs one"):
        compare(write_grid(), CompareOptions(tmp_path / "absent", table=True))
    with pytest.raises(DistillError, match="is a file"):
        compare(write_grid(), CompareOptions(tmp_path / "full" / "photo.png"))


def test_a_damaged_state_is_named(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output))
    file = output / "cells" / f"{trainer.names[0]}.json"
    whole = json.loads(file.read_text())
    others = ({"state": "well"}, {"metrics": {"nn_accuracy": "0.5"}}, {"holdout_curve": [[1, "x"]]})
    short = {"holdout_curve": [[1]]}
    for content in ("{", *(json.dumps({**whole, **other}) for other in (*others, short))):
        file.write_text(content)
        with pytest.raises(DistillError, match=r"is damaged .* remove it to repeat the run"):
            compare(write_grid(), CompareOptions(output, resume=True))
