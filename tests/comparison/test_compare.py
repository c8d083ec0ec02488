"""Comparisons with a training of a few small files: made, killed, resumed, changed, tabled."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from distill.comparison import worker
from distill.comparison.compare import CompareOptions, compare
from distill.errors import DistillError, NonFiniteLossError


def test_all_trials_are_made_measured_and_tabled(trainer, write_grid, output):
    common, own = {"epochs": 2, "clip_grad_norm": 7.5}, {"resnet18": {"warmup_epochs": 0}}
    result = compare(write_grid(common=common, per_student=own), CompareOptions(output))
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
    accuracies = [trial["metrics"]["nn_accuracy"] for trial in numbers["trials"]]
    assert accuracies == pytest.approx([0.5, 0.7, 0.51, 0.71])
    assert numbers["rows"][1]["best"] == ["nn_accuracy", "cluster_alignment"]
    assert "| two | 0.800 ± 0.000 | **0.705 ± 0.007** |" in (output / "comparison.md").read_text()
    assert "0.705 ± 0.007" in (output / "comparison.html").read_text()
    for file in ("comparison.md", "comparison.html"):  # say how the runs were trained
        text = (output / file).read_text().replace("\\", "")
        for words in ("epochs", "All runs: clip_grad_norm 7.5.", "With resnet18: warmup_epochs 0."):
            assert words in text
    for name in trainer.names:
        left = {path.name for path in (output / "runs" / name).iterdir()}
        assert left - {".lock", ".metrics.json.lock"} == {
            *("config.yaml", "metrics.json", "log.jsonl", "student.safetensors")
        }


def test_finished_trials_are_known_without_their_directories(trainer, write_grid, output):
    whole = compare(write_grid(), CompareOptions(output))
    shutil.rmtree(output / "runs")
    (output / "comparison.json").unlink()
    (output / "trials" / f"{trainer.names[3]}.json").unlink()
    result = compare(output, CompareOptions(resume=True))
    assert result.content.tables == whole.content.tables
    assert result.content.curves == whole.content.curves
    assert trainer.finished == Counter([*trainer.names, trainer.names[3]])


def test_a_directory_of_an_older_version_goes_on(trainer, write_grid, output):
    whole = compare(write_grid(), CompareOptions(output))
    (output / "trials").rename(output / "cells")
    for file in (output / "cells").iterdir():
        content = json.loads(file.read_text())
        content["asked"] = {**content.pop("options"), "teacher_view": "centre"}
        file.write_text(json.dumps(content))
    (output / "cells" / f"{trainer.names[3]}.json").unlink()
    result = compare(write_grid(), CompareOptions(output, resume=True))
    assert result.content.tables == whole.content.tables
    assert trainer.finished == Counter(trainer.names)
    assert not (output / "trials").exists()


def test_checkpoints_are_kept_when_asked(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output, keep_checkpoints=True))
    assert len(list(output.glob("runs/*/checkpoints/*.safetensors"))) == 4


MOMENTS = ["empty", "begun", "half", "unmeasured", "trained", "evaluation", "linear", "cleaning"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_comparison_that_is_killed_goes_on_and_nothing_is_lost_or_doubled(
    trainer, write_grid, output, monkeypatch, moment
):
    def kill(run: Path) -> None:
        raise trainer.killed

    grid, victim = write_grid(), trainer.names[1]
    trainer.at[victim, moment] = trainer.killed()
    with monkeypatch.context() as patch:
        if moment == "cleaning":
            patch.setattr(worker, "remove_checkpoints", kill)
        with pytest.raises(trainer.killed):
            compare(grid, CompareOptions(output))
    result = compare(grid, CompareOptions(output, resume=True))
    assert (result.num_open, result.num_failed) == (0, 0)
    assert result.content.tables[0].rows[1].values["nn_accuracy"].mean == pytest.approx(0.705)
    assert trainer.begun == trainer.finished == trainer.linear == Counter(trainer.names)
    assert not list(output.glob("runs/*/checkpoints/*"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NonFiniteLossError("the loss is nan at step 7"), "the loss is nan at step 7"),
        (DistillError("no room"), "no room"),
        (KeyError("x"), "KeyError: 'x'; this is not a mistake in the grid"),
    ],
)
def test_a_trial_that_fails_does_not_end_the_grid(trainer, write_grid, output, error, sentence):
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
    tuning = [name for name in trainer.finished if "tune" in name]
    assert len(tuning) == 3
    for name in tuning:  # no validation image is looked at
        config = trainer.configs[name]
        assert (config.optimization.epochs, config.images.holdout, config.run.seed) == (1, 0.2, 0)
        assert (config.run.measure, trainer.linear[name]) == ("none", 0)
    (choice,) = result.content.tuning
    assert choice.tried[choice.chosen] == ("learning_rate 0.2", 0.7)
    assert "in one run of 1 epochs with seed 0" in result.content.tuning_facts
    assert result.content.tables[0].rows[0].num_asked == 2  # tuning runs are in no mean


def test_validation_images_choose_nothing(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"learning_rate": [0.1, 0.2]}}}, seeds=[0])
    trainer.held_out = {0.1: 0.6, 0.2: 0.5}
    compare(grid, CompareOptions(output))
    file = output / "trials" / "one--resnet18--pixels--tune-learning_rate-0.2.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "metrics": {"nn_accuracy": 1.0, "linear_accuracy": 1.0}}))
    (output / "trials" / f"{trainer.names[0]}.json").unlink()
    shutil.rmtree(output / "runs")
    compare(grid, CompareOptions(output, resume=True))
    assert trainer.configs[trainer.names[0]].optimization.learning_rate == 0.1


def test_a_tuning_run_that_fails_loses_and_without_any_the_trials_fail(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"learning_rate": [0.1, 0.2]}}})
    tuning = [f"one--resnet18--pixels--tune-learning_rate-{rate}" for rate in (0.1, 0.2)]
    trainer.at[tuning[0], "half"] = NonFiniteLossError("nan")
    result = compare(grid, CompareOptions(output))
    assert result.num_failed == 1
    assert trainer.configs[trainer.name("one", 0)].optimization.learning_rate == 0.2
    # What was used is not opened again.
    compare(grid, CompareOptions(output, resume=True, retry_failed=True))
    assert trainer.finished[tuning[0]] == 0
    for name in tuning:
        trainer.at[name, "half"] = NonFiniteLossError("nan")
    other = output.with_name("other")
    result = compare(grid, CompareOptions(other))
    assert result.num_failed == 4
    assert "none of its tuning runs has an accuracy" in result.content.failed[-1][1]
    assert compare(grid, CompareOptions(other, resume=True, retry_failed=True)).num_failed == 0


def test_a_part_of_the_grid_and_its_tables(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"temperature": [0.1, 1]}}, "two": {}})
    result = compare(grid, CompareOptions(output, only="one*seed1"))
    assert (result.num_runs, result.num_open) == (3, 0)
    assert {name for name in trainer.finished if "seed" in name} == {trainer.name("one", 1)}
    (output / "comparison.md").unlink()
    assert compare(output, CompareOptions(table=True)).num_open == 3
    assert "1 of 2" in (output / "comparison.md").read_text()
    assert compare(grid, CompareOptions(output, resume=True)).num_runs == 6
    assert set(trainer.finished.values()) == {1}


def test_one_seed_marks_nothing_and_references_are_of_usual_trials(trainer, write_grid, output):
    methods = {"warm": {"student_weights": "x.safetensors"}, "one": {}}
    result = compare(write_grid(seeds=[0], methods=methods), CompareOptions(output))
    assert result.content.tables[0].best("nn_accuracy") is None
    # A student that starts from weights does not speak for untrained ones.
    measured = [trainer.configs[trainer.name(method, 0)].run.measure for method in methods]
    assert measured == ["all", "all"]
    text = (output / "comparison.md").read_text()
    assert "All methods stand on one seed" in text
    assert "**" not in text
    file = output / "trials" / f"{trainer.name('warm', 0)}.json"
    record = json.loads(file.read_text())
    record["metrics"]["untrained_nn_accuracy"] = 0.9
    file.write_text(json.dumps(record))
    untrained = compare(output, CompareOptions(table=True)).content.tables[0].rows[-2]
    assert untrained.values["nn_accuracy"].mean == pytest.approx(0.3)


def test_the_linear_classifier_may_be_left_out_and_asked_for_later(trainer, write_grid, output):
    result = compare(write_grid(linear=False, seeds=[0]), CompareOptions(output))
    measured = [trainer.configs[name].run.measure for name in trainer.names[:2]]
    assert (measured, trainer.linear) == (["all", "trained"], Counter())
    assert "linear" not in result.content.tables[0].measures().values()
    shutil.rmtree(output / "runs" / trainer.name("two", 0))
    grid = write_grid()
    assert compare(grid, CompareOptions(output, dry_run=True)).num_open == 3
    result = compare(grid, CompareOptions(output, resume=True))
    assert trainer.finished == Counter(trainer.names)
    # But of the one whose student is gone.
    assert trainer.linear == Counter(set(trainer.names) - {trainer.name("two", 0)})
    one, two, *_ = result.content.tables[0].rows
    assert (one.values["linear_accuracy"].num, two.values["linear_accuracy"].num) == (2, 1)
    assert "Not every run has measured linear: two." in result.content.tables[0].remarks()


@pytest.mark.parametrize("state", ["done", "half"])
def test_trials_made_under_other_options_are_not_mixed_in(
    trainer, write_grid, output, contents, state
):
    if state == "half":
        trainer.at[trainer.names[0], "half"] = trainer.killed()
        with pytest.raises(trainer.killed):
            compare(write_grid(), CompareOptions(output))
    else:
        compare(write_grid(), CompareOptions(output))
    before = contents(output)
    for options in (CompareOptions(resume=True), CompareOptions(table=True)):
        with pytest.raises(DistillError) as error:
            compare(write_grid(common={"epochs": 3}), replace(options, output=output))
        words = f"{trainer.names[0]} was made with epochs 2 and the grid now has 3"
        assert words in str(error.value)
        assert contents(output) == before
    with pytest.raises(DistillError, match="link the old path to the new one if it has only moved"):
        compare(write_grid(data="elsewhere"), CompareOptions(output, resume=True))
    # How runs are executed may change, and methods may be added.
    methods = {"one": {}, "two": {"log_every": 7}, "three": {"temperature": 1.0}}
    wider = write_grid(common={"epochs": 2, "num_workers": 0}, methods=methods)
    result = compare(wider, CompareOptions(output, resume=True))
    assert (result.num_runs, result.num_open) == (6, 0)
    assert set(trainer.finished.values()) == {1}


def test_another_grid_or_a_second_process_is_refused(trainer, write_grid, output, contents):
    compare(write_grid(), CompareOptions(output))
    before = contents(output)
    words = r"none of whose 4 runs \(such as one--.* choose another"
    with pytest.raises(DistillError, match=words):
        compare(write_grid(methods={"other": {}}), CompareOptions(output, resume=True))
    with filelock.FileLock(output / ".lock"), pytest.raises(DistillError, match="is in use"):
        compare(write_grid(seeds=[0]), CompareOptions(output, resume=True))
    assert contents(output) == before


def test_a_value_to_try_comes_too_late_for_trials_that_are_there(
    trainer, write_grid, output, contents
):
    def grid(*rates: float, epochs: int = 2) -> Path:
        methods = {"one": {"tune": {"learning_rate": list(rates)}}}
        return write_grid(methods=methods, common={"epochs": epochs}, tune_epochs=1)

    trainer.at[trainer.name("one", 0), "half"] = "SIGTERM"
    compare(grid(0.1, 0.2), CompareOptions(output))
    before = contents(output)
    trainer.held_out = {0.4: 0.9}
    with pytest.raises(DistillError, match=r"one more value to try, .*0\.4; remove it from tune"):
        compare(grid(0.1, 0.2, 0.4), CompareOptions(output, resume=True))
    with pytest.raises(DistillError, match="was made with epochs 2 and the grid now has 9"):
        compare(grid(0.1, 0.2, 0.4, epochs=9), CompareOptions(output, resume=True))
    assert contents(output) == before
    assert compare(grid(0.1, 0.2), CompareOptions(output, resume=True)).num_open == 0


def test_failed_trials_are_retried_where_asked_and_only_when_nothing_is_refused(
    trainer, write_grid, output, contents
):
    for method in ("one", "two"):
        trainer.at[trainer.name(method, 1), "half"] = NonFiniteLossError("nan")
    compare(write_grid(), CompareOptions(output))
    retry = CompareOptions(output, resume=True, retry_failed=True, only="one*")
    before = contents(output)
    other = write_grid(methods={"one": {"temperature": 1.0}, "two": {"log_every": 7}})
    with pytest.raises(DistillError, match=r"one.*seed0 was made with temperature"):
        compare(other, retry)
    dry = compare(write_grid(), replace(retry, resume=False, dry_run=True))
    assert (dry.num_open, dry.num_failed) == (1, 0)
    assert contents(output) == before
    assert compare(write_grid(), retry).num_failed == 0
    failed = json.loads((output / "trials" / f"{trainer.name('two', 1)}.json").read_text())
    assert failed["state"] == "failed"
    assert (output / "runs" / trainer.name("two", 1)).exists()


def test_a_failed_trial_begins_anew_under_other_options(trainer, write_grid, output):
    trainer.at[trainer.names[0], "half"] = NonFiniteLossError("nan")
    trainer.at[trainer.names[2], "half"] = NonFiniteLossError("nan")
    compare(write_grid(), CompareOptions(output))
    mended = write_grid(methods={"one": {"clip_grad_norm": 1.0}, "two": {"log_every": 7}})
    with pytest.raises(DistillError, match="or retry it with --retry-failed"):
        compare(mended, CompareOptions(output, resume=True))
    assert compare(mended, CompareOptions(output, resume=True, retry_failed=True)).num_failed == 0
    assert trainer.begun == dict(zip(trainer.names, (2, 1, 2, 1), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "holds a comparison already; continue it with --resume"),
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


def test_a_damaged_record_is_named(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output))
    file = output / "trials" / f"{trainer.names[0]}.json"
    whole = json.loads(file.read_text())
    changes = ({"state": "well"}, {"metrics": {"nn_accuracy": "0.5"}}, {"holdout_curve": [[1]]})
    for content in ("{", *(json.dumps({**whole, **change}) for change in changes)):
        file.write_text(content)
        with pytest.raises(DistillError, match=r"is damaged .* remove it to repeat the run"):
            compare(write_grid(), CompareOptions(output, resume=True))
