"""A comparison's sittings, with training and the linear classifier replaced by fast ones."""

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

import filelock
import pytest
import yaml

from distill.engine.run_directory import RunDirectory, add_metrics
from distill.errors import DistillError, NonFiniteLossError
from distill.jobs.comparison import child, sitting
from distill.jobs.comparison.child import Request, perform
from distill.jobs.comparison.job import compare
from distill.jobs.comparison.options import CompareOptions
from distill.jobs.fitting import RunResult

METHODS = ("one", "two")


class Killed(BaseException):
    """Ends the program where it stands, as kill -9 does: nobody catches it."""


class Trainer:
    """Leaves what `distill train` leaves, and breaks where it is told to.

    Attributes:
        begun: How often each run was begun from its start.
        finished: How often each was trained to its end.
        linear: How often the classifier of each was measured.
        at: What to raise, by run and moment.
        held_out: Accuracy on held-out images by learning rate.
    """

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.linear: Counter[str] = Counter()
        self.at: dict[tuple[str, str], BaseException | str] = {}
        self.held_out: dict[Any, float] = {}
        self.configs: dict[str, Any] = {}

    def train(self, config: Any) -> RunResult:
        run = RunDirectory(config.run.output, resume=config.run.resume)
        try:
            return self._train(config, run)
        finally:
            run.close()

    def _train(self, config: Any, run: RunDirectory) -> RunResult:
        name = run.path.name
        self.configs[name] = config
        self._moment(name, "empty")
        run.write_config(config, command="train")
        self._moment(name, "begun")
        checkpoint = run.checkpoints / "step-000000001.safetensors"
        if not checkpoint.exists():
            self.begun[name] += 1
            checkpoint.write_bytes(b"0" * 1000)
        stop = self._moment(name, "half")
        if stop:
            return RunResult(run.path, {}, stop)
        rate = config.optimization.learning_rate
        line = {"step": 9, "epoch": 1, "holdout_nn_accuracy": self.held_out.get(rate, 0.5)}
        (run.path / "log.jsonl").write_text(json.dumps(line) + "\n")
        run.student.write_bytes(b"weights")
        self._moment(name, "unmeasured")
        accuracy = 0.5 + 0.01 * config.run.seed + 0.2 * (config.method.variant != "one-queue")
        values = {"nn_accuracy": accuracy, "cluster_alignment": accuracy / 2}
        before = {"teacher_nn_accuracy": 0.95, "untrained_nn_accuracy": 0.3 + 0.1 * config.run.seed}
        run.add_metrics({**values, **before, "train_seconds": 60.0})
        self.finished[name] += 1
        self._moment(name, "trained")
        return RunResult(run.path, {}, None)

    def measure(self, run: Path, options: Any) -> None:
        self._moment(run.name, "linear")
        add_metrics(run, {"linear_accuracy": 0.8})
        self.linear[run.name] += 1

    def _moment(self, name: str, moment: str) -> str | None:
        what = self.at.pop((name, moment), None)
        if isinstance(what, BaseException):
            raise what
        return what


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Return the stub, put in the place of training, measuring and processes."""
    found = Trainer()
    monkeypatch.setattr("distill.jobs.train.train", found.train)
    monkeypatch.setattr("distill.jobs.linear.evaluate_linear", found.measure)
    monkeypatch.setattr(
        "distill.jobs.comparison.job.require_runnable", lambda cells, directory: None
    )
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: perform(request))
    return found


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a grid of two methods and two seeds."""

    def write(**changes: Any) -> Path:
        content = {
            "data": "digits",
            "common": {"epochs": 2},
            "teachers": ["pixels"],
            "students": ["resnet18"],
            "seeds": [0, 1],
            "methods": {"one": {}, "two": {"variant": "two-queue-momentum"}},
            **changes,
        }
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def name(method: str, seed: int) -> str:
    return f"{method}--resnet18--pixels--seed{seed}"


NAMES = [name(method, seed) for seed in (0, 1) for method in METHODS]


def test_all_runs_are_made_measured_and_tabled(trainer, write_grid, output):
    result = compare(write_grid(), CompareOptions(output))
    assert (result.num_runs, result.num_open, result.num_failed) == (4, 0, 0)
    assert trainer.begun == trainer.finished == trainer.linear == Counter(NAMES)
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
    for made in NAMES:
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
    (output / "cells" / f"{NAMES[3]}.json").unlink()
    result = compare(output, CompareOptions(resume=True))
    assert result.content.tables == whole.content.tables
    assert result.content.curves == whole.content.curves
    assert trainer.finished == Counter([*NAMES, NAMES[3]])


def test_checkpoints_are_kept_when_asked(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output, keep_checkpoints=True))
    assert len(list(output.glob("runs/*/checkpoints/*.safetensors"))) == 4


@pytest.mark.parametrize("moment", ["empty", "begun", "half", "unmeasured", "trained", "linear"])
def test_a_sitting_that_is_killed_goes_on_and_nothing_is_lost(trainer, write_grid, output, moment):
    grid, victim = write_grid(), NAMES[2]
    whole = compare(grid, CompareOptions(output.with_name("whole")))
    for counter in (trainer.begun, trainer.finished, trainer.linear):
        counter.clear()
    trainer.at[victim, moment] = Killed()
    with pytest.raises(Killed):
        compare(grid, CompareOptions(output))
    result = compare(grid, CompareOptions(output, resume=True))
    assert result.content.tables == whole.content.tables
    assert (result.num_open, result.num_failed) == (0, 0)
    assert trainer.begun == trainer.finished == trainer.linear == Counter(NAMES)
    assert not list(output.glob("runs/*/checkpoints"))


def test_a_kill_between_the_outcome_and_the_cleaning(trainer, write_grid, output, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(child, "remove_checkpoints", lambda run: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            compare(write_grid(), CompareOptions(output))
    assert len(list(output.glob("runs/*/checkpoints/*.safetensors"))) == 1
    compare(write_grid(), CompareOptions(output, resume=True))
    assert trainer.finished == Counter(NAMES)
    assert not list(output.glob("runs/*/checkpoints/*.safetensors"))


def test_a_process_that_is_killed_leaves_its_run_open_and_the_others_go_on(
    trainer, write_grid, output, monkeypatch, capsys
):
    with monkeypatch.context() as patch:

        def launch(request: Request, stop: Any, slot: Any) -> int:
            return -9 if Path(request.run).name == NAMES[1] else perform(request)

        patch.setattr(sitting, "launch_process", launch)
        result = compare(write_grid(), CompareOptions(output))
    assert (result.num_open, result.num_failed) == (1, 0)
    assert f"ended by SIGKILL: {NAMES[1]}" in capsys.readouterr().out
    assert any("Partial: 1 of 4" in remark for remark in result.content.tables[0].remarks())
    assert "| two | 0.800 | 0.710 | 0.355 | 1 of 2 |" in (output / "comparison.md").read_text()
    assert compare(write_grid(), CompareOptions(output, resume=True)).num_open == 0


def test_a_stop_ends_the_sitting_with_the_run_that_is_told(
    trainer, write_grid, output, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("distill.jobs.comparison.sitting.time.monotonic", lambda: now[0])

    def launch(request: Request, should_stop: Callable[[], bool], slot: Any) -> int:
        if Path(request.run).name == NAMES[1]:
            assert not should_stop()
            now[0] = 61.0
            assert should_stop()
            trainer.at[NAMES[1], "half"] = "SIGTERM"
        return perform(request)

    monkeypatch.setattr(sitting, "launch_process", launch)
    result = compare(write_grid(), CompareOptions(output, stop_after=1.0))
    assert (result.stopped_by, result.num_open) == ("--stop-after", 3)
    assert result.seconds_left is not None
    assert trainer.finished == Counter(NAMES[:1])
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: perform(request))
    assert compare(write_grid(), CompareOptions(output, resume=True)).stopped_by is None
    assert trainer.begun == trainer.finished == Counter(NAMES)


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
        if Path(request.run).name == NAMES[0]:
            raise Killed
        try:
            while not should_stop():
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append(Path(request.run).name)
            raise
        return 143

    monkeypatch.setattr(sitting, "launch_process", launch)
    with pytest.raises(Killed):
        compare(write_grid(), CompareOptions(output, jobs=2))
    assert ended == [NAMES[1]]


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
    trainer.at[NAMES[0], "half"] = error
    result = compare(grid, CompareOptions(output))
    assert (result.num_open, result.num_failed) == (0, 1)
    assert result.content.failed == [(NAMES[0], sentence)]
    row = result.content.tables[0].rows[0]
    assert (row.seeds(), row.values["nn_accuracy"].num) == ("1 of 2, 1 failed", 1)
    assert result.content.tables[0].best("nn_accuracy") is None
    assert sentence.replace("'", "&#39;") in (output / "comparison.html").read_text()
    again = compare(grid, CompareOptions(output, resume=True))
    assert again.num_failed == 1  # retried only when asked
    assert trainer.finished[NAMES[0]] == 0
    mended = compare(grid, CompareOptions(output, resume=True, retry_failed=True))
    assert mended.num_failed == 0
    assert trainer.begun == trainer.finished == Counter(NAMES)


def test_a_failed_run_may_be_retried_with_other_options(trainer, write_grid, output):
    trainer.at[NAMES[0], "half"] = NonFiniteLossError("nan")
    trainer.at[NAMES[2], "half"] = NonFiniteLossError("nan")
    compare(write_grid(), CompareOptions(output))
    methods = {"one": {"clip_grad_norm": 1.0}, "two": {"variant": "two-queue-momentum"}}
    mended = write_grid(methods=methods)
    with pytest.raises(DistillError, match="or retry it with --retry-failed"):
        compare(mended, CompareOptions(output, resume=True))
    assert compare(mended, CompareOptions(output, resume=True, retry_failed=True)).num_failed == 0
    assert trainer.begun == Counter({NAMES[0]: 2, NAMES[1]: 1, NAMES[2]: 2, NAMES[3]: 1})


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file of a comparison with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_grid_is_refused_and_leaves_the_first_as_it_was(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output))
    before = contents(output)
    other = write_grid(methods={"other": {}})
    with pytest.raises(
        DistillError, match=r"none of whose 4 runs \(such as one--.* choose another"
    ):
        compare(other, CompareOptions(output, resume=True))
    with filelock.FileLock(output / ".lock"), pytest.raises(DistillError, match="is in use"):
        compare(write_grid(seeds=[0]), CompareOptions(output, resume=True))
    assert contents(output) == before


def test_images_that_have_moved_may_be_linked(trainer, write_grid, output):
    compare(write_grid(), CompareOptions(output))
    with pytest.raises(DistillError, match="leave a link in the old place if it has only moved"):
        compare(write_grid(data="elsewhere"), CompareOptions(output, resume=True))


@pytest.mark.parametrize("state", ["done", "half"])
def test_a_value_to_try_comes_too_late_for_runs_that_are_there(trainer, write_grid, output, state):
    def grid(*rates: float, epochs: int = 2) -> Path:
        methods = {"one": {"tune": {"learning_rate": list(rates)}}}
        return write_grid(methods=methods, common={"epochs": epochs}, tune_epochs=1)

    if state == "half":
        trainer.at[name("one", 0), "half"] = "SIGTERM"
    compare(grid(0.1, 0.2), CompareOptions(output))
    before = contents(output)
    trainer.held_out = {0.4: 0.9}
    with pytest.raises(DistillError, match=r"one more value to try, .*0\.4; take it out of tune"):
        compare(grid(0.1, 0.2, 0.4), CompareOptions(output, resume=True))
    with pytest.raises(DistillError, match="was made with epochs 2 and the grid now asks for 9"):
        compare(grid(0.1, 0.2, 0.4, epochs=9), CompareOptions(output, resume=True))
    assert contents(output) == before
    assert compare(grid(0.1, 0.2), CompareOptions(output, resume=True)).num_open == 0


def test_failed_runs_are_retried_where_asked_and_only_when_nothing_is_refused(
    trainer, write_grid, output
):
    for method in ("one", "two"):
        trainer.at[name(method, 1), "half"] = NonFiniteLossError("nan")
    compare(write_grid(), CompareOptions(output))
    retry = CompareOptions(output, resume=True, retry_failed=True, only="one*")
    before = contents(output)
    methods = {"one": {"temperature": 1.0}, "two": {"variant": "two-queue-momentum"}}
    with pytest.raises(DistillError, match=r"one.*seed0 was made with temperature"):
        compare(write_grid(methods=methods), retry)
    dry = compare(write_grid(), replace(retry, resume=False, dry_run=True))
    assert (dry.num_open, dry.num_failed) == (1, 0)
    assert contents(output) == before
    assert compare(write_grid(), retry).num_failed == 0
    failed = json.loads((output / "cells" / f"{name('two', 1)}.json").read_text())
    assert failed["state"] == "failed"
    assert (output / "runs" / name("two", 1)).exists()


def test_a_measure_that_is_asked_for_later_is_made_of_what_is_trained(trainer, write_grid, output):
    compare(write_grid(linear=False, seeds=[0]), CompareOptions(output))
    shutil.rmtree(output / "runs" / name("two", 0))
    grid = write_grid()
    assert compare(grid, CompareOptions(output, dry_run=True)).num_open == 3
    result = compare(grid, CompareOptions(output, resume=True))
    assert trainer.finished == Counter(NAMES)
    assert trainer.linear == Counter(set(NAMES) - {name("two", 0)})  # whose student is gone
    one, two, *_ = result.content.tables[0].rows
    assert (one.values["linear_accuracy"].num, two.values["linear_accuracy"].num) == (2, 1)
    assert "Not every run has measured linear: two." in result.content.tables[0].remarks()


@pytest.mark.parametrize("state", ["done", "half"])
def test_runs_made_under_other_options_are_not_mixed_in(trainer, write_grid, output, state):
    if state == "half":
        trainer.at[NAMES[0], "half"] = Killed()
        with pytest.raises(Killed):
            compare(write_grid(), CompareOptions(output))
    else:
        compare(write_grid(), CompareOptions(output))
    before = contents(output)
    for options in (CompareOptions(resume=True), CompareOptions(table=True)):
        with pytest.raises(DistillError) as error:
            compare(write_grid(common={"epochs": 3}), replace(options, output=output))
        assert f"{NAMES[0]} was made with epochs 2 and the grid now asks for 3" in str(error.value)
        assert contents(output) == before
    # How runs are executed may change, and methods may be added.
    methods = {"one": {}, "two": {"variant": "two-queue-momentum"}, "three": {"temperature": 1.0}}
    wider = write_grid(common={"epochs": 2, "num_workers": 0}, methods=methods)
    result = compare(wider, CompareOptions(output, resume=True))
    assert (result.num_runs, result.num_open) == (6, 0)
    assert set(trainer.finished.values()) == {1}


def test_the_best_tuned_value_is_used_for_all_seeds(trainer, write_grid, output):
    trainer.held_out = {0.1: 0.6, 0.2: 0.7, 0.4: 0.7}
    methods = {"one": {"tune": {"learning_rate": [0.1, 0.2, 0.4]}}, "two": {}}
    grid = write_grid(methods=methods, tune_epochs=1, tune_holdout=0.2)
    result = compare(grid, CompareOptions(output))
    for seed in (0, 1):
        config = trainer.configs[name("one", seed)]
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
    trainer.at[name("one", 1), "half"] = DistillError("no room")  # fails, and the next one measures
    compare(write_grid(methods=methods), CompareOptions(output))
    measured = {name: config.run.measure for name, config in trainer.configs.items()}
    assert measured.pop("one--resnet18--pixels--tune-learning_rate-0.1") == "none"
    assert measured == {
        **{name("one", 0): "all", name("two", 0): "trained", name("three", 0): "trained"},
        **{name("one", 1): "all", name("three", 1): "all", name("two", 1): "trained"},
    }


def test_a_student_that_starts_from_weights_does_not_speak_for_untrained_ones(
    trainer, write_grid, output, tmp_path
):
    methods = {"warm": {"student_weights": str(tmp_path / "x.safetensors")}, "one": {}, "two": {}}
    result = compare(write_grid(methods=methods, seeds=[0]), CompareOptions(output))
    measured = [trainer.configs[name(method, 0)].run.measure for method in methods]
    assert measured == ["all", "all", "trained"]
    file = output / "cells" / f"{name('warm', 0)}.json"
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
    trainer.at[name("one", 0), "half"] = "SIGTERM"
    compare(grid, CompareOptions(output))
    cell = json.loads((output / "cells" / f"{name('one', 0)}.json").read_text())
    for left in ("one", "two"):  # and their directories are gone, as on another machine
        (output / "cells" / f"{name(left, 0)}.json").write_text(
            json.dumps({**cell, "state": "started"})
        )
        shutil.rmtree(output / "runs" / name(left, 0), ignore_errors=True)
    compare(grid, CompareOptions(output, resume=True))
    measured = [trainer.configs[name(method, 0)].run.measure for method in ("one", "two")]
    assert measured == ["all", "trained"]


def test_a_tuning_run_that_fails_loses_and_without_any_the_runs_fail(trainer, write_grid, output):
    grid = write_grid(methods={"one": {"tune": {"learning_rate": [0.1, 0.2]}}})
    tuning = [f"one--resnet18--pixels--tune-learning_rate-{rate}" for rate in (0.1, 0.2)]
    trainer.at[tuning[0], "half"] = NonFiniteLossError("nan")
    result = compare(grid, CompareOptions(output))
    assert result.num_failed == 1
    assert trainer.configs[name("one", 0)].optimization.learning_rate == 0.2
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
    assert name("one", 1) in trainer.finished
    assert not set(trainer.finished) & {name("one", 0), name("two", 0), name("two", 1)}
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
    file = output / "cells" / f"{NAMES[0]}.json"
    whole = json.loads(file.read_text())
    others = ({"state": "well"}, {"metrics": {"nn_accuracy": "0.5"}}, {"holdout_curve": [[1, "x"]]})
    short = {"holdout_curve": [[1]]}
    for content in ("{", *(json.dumps({**whole, **other}) for other in (*others, short))):
        file.write_text(content)
        with pytest.raises(DistillError, match=r"is damaged .* remove it to repeat the run"):
            compare(write_grid(), CompareOptions(output, resume=True))
