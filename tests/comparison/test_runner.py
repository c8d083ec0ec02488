from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.comparison import runner
from distill.comparison.compare import CompareOptions, compare
from distill.comparison.grid import parse_grid
from distill.comparison.runner import seconds_left, slot_environments
from distill.comparison.trial import Comparison, TrialStatus
from distill.comparison.worker import Request, perform

GRID: dict[str, Any] = {
    "common": {"epochs": 4},
    "teachers": ["pixels"],
    "students": ["resnet18", "alexnet"],
    "seeds": [0, 1],
    "methods": {"a": {"tune": {"temperature": [0.1, 1]}}, "b": {}},
    "tune_epochs": 2,
}


def done(seconds: float) -> TrialStatus:
    return TrialStatus("done", {}, seconds=seconds)


def test_what_is_left_counts_open_trials_and_forgets_the_teachers_pass(tmp_path):
    comparison = Comparison(parse_grid(GRID, source="grid"), tmp_path)
    trials = list(comparison.trials.values())
    assert seconds_left(comparison, trials) is None
    comparison.statuses[trials[0].name] = done(1000.0)
    assert seconds_left(comparison, trials) == 500.0 * (3 * 2 + 8 * 4)
    comparison.statuses[trials[1].name] = done(2.0)
    comparison.statuses[trials[2].name] = TrialStatus("started", {})
    assert seconds_left(comparison, trials) == 1.0 * (2 * 2 + 8 * 4)
    comparison.statuses.update({trial.name: done(1.0) for trial in trials})
    assert seconds_left(comparison, trials) == 0.0


def test_a_trial_takes_what_the_most_similar_ones_took_by_epochs(tmp_path):
    comparison = Comparison(parse_grid(GRID, source="grid"), tmp_path)
    trials = comparison.trials
    tuning, b = "a--resnet18--pixels--tune-temperature-0.1", "b--resnet18--pixels--seed0"
    pass_of_teacher = "a--resnet18--pixels--tune-temperature-1"
    comparison.statuses = {pass_of_teacher: done(999), tuning: done(10), b: done(100)}
    comparison.statuses = dict(reversed(comparison.statuses.items()))
    names = [tuning, b, "a--resnet18--pixels--seed0", "b--alexnet--pixels--seed0"]
    made = [trials[name] for name in (pass_of_teacher, tuning, b)]
    assert seconds_left(comparison, [*made, trials[names[2]]]) == 4 * 5
    assert seconds_left(comparison, [*made, trials["b--resnet18--pixels--seed1"]]) == 4 * 25
    assert seconds_left(comparison, [*made, trials[names[3]]]) == 4 * (5 + 25) / 2


def test_slots_share_cores_and_have_gpus_of_their_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runner, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert slot_environments(1) == [{}]
    assert slot_environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert slot_environments(7) == [{"OMP_NUM_THREADS": "1"}] * 7
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the person knows better
    assert slot_environments(2) == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slot_environments(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slot_environments(2)] == ["5", "GPU-abc"]


def test_a_process_that_is_killed_leaves_its_trial_open_and_the_others_go_on(
    trainer, write_grid, output, monkeypatch, capsys
):
    with monkeypatch.context() as patch:

        def launch(request: Request, stop: Any, slot: Any) -> int:
            return -9 if Path(request.run).name == trainer.names[1] else perform(request)

        patch.setattr(runner, "launch", launch)
        result = compare(write_grid(), CompareOptions(output))
    assert (result.num_open, result.num_failed) == (1, 0)
    assert f"ended by SIGKILL: {trainer.names[1]}" in capsys.readouterr().out
    assert any("Partial: 1 of 4" in remark for remark in result.content.tables[0].remarks())
    assert "| two | 0.800 | 0.710 | 0.355 | 1 of 2 |" in (output / "comparison.md").read_text()
    assert compare(write_grid(), CompareOptions(output, resume=True)).num_open == 0


def test_a_stop_ends_the_comparison_with_the_trial_that_is_told(
    trainer, write_grid, output, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("distill.comparison.runner.time.monotonic", lambda: now[0])

    def launch(request: Request, should_stop: Callable[[], bool], slot: Any) -> int:
        if Path(request.run).name == trainer.names[1]:
            assert not should_stop()
            now[0] = 61.0
            assert should_stop()
            trainer.at[trainer.names[1], "half"] = "SIGTERM"
        return perform(request)

    monkeypatch.setattr(runner, "launch", launch)
    result = compare(write_grid(), CompareOptions(output, stop_after=1.0))
    assert (result.stopped_by, result.num_open) == ("--stop-after", 3)
    assert result.seconds_left is not None
    assert trainer.finished == Counter(trainer.names[:1])
    monkeypatch.setattr(runner, "launch", lambda request, stop, slot: perform(request))
    assert compare(write_grid(), CompareOptions(output, resume=True)).stopped_by is None
    assert trainer.begun == trainer.finished == Counter(trainer.names)


def test_several_trials_at_a_time_wait_for_their_tuning(trainer, write_grid, output, monkeypatch):
    grid = write_grid(methods={"one": {"tune": {"learning_rate": [0.1, 0.2]}}, "two": {}})
    both = threading.Barrier(2)
    tuned, order = set(), []

    def launch(request: Request, stop: Any, slot: Any) -> int:
        name = Path(request.run).name
        order.append(name)
        assert "OMP_NUM_THREADS" in slot
        if "tune" in name:
            both.wait(timeout=60)  # broken unless two are under way
            status = perform(request)
            tuned.add(name)
            return status
        assert "two" in name or len(tuned) == 2
        return perform(request)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "launch", launch)
    assert compare(grid, CompareOptions(output, jobs=2)).num_open == 0
    assert (len(order), set(trainer.finished.values())) == (6, {1})


def test_what_ends_one_trial_by_force_ends_the_others(trainer, write_grid, output, monkeypatch):
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

    monkeypatch.setattr(runner, "launch", launch)
    with pytest.raises(trainer.killed):
        compare(write_grid(), CompareOptions(output, jobs=2))
    assert ended == [trainer.names[1]]


def test_teacher_and_untrained_student_are_measured_once_a_seed(trainer, write_grid, output):
    methods = {"one": {"tune": {"learning_rate": [0.1]}}, "two": {}, "three": {}}
    trainer.at[trainer.name("one", 1), "half"] = ValueError("fails, and the next one measures")
    compare(write_grid(methods=methods), CompareOptions(output))
    measured = {name: config.run.measure for name, config in trainer.configs.items()}
    assert measured == {
        "one--resnet18--pixels--tune-learning_rate-0.1": "none",
        **{trainer.name("one", 0): "all", trainer.name("one", 1): "all"},
        **{trainer.name("two", 0): "none", trainer.name("two", 1): "none"},
        **{trainer.name("three", 0): "none", trainer.name("three", 1): "all"},
    }
