"""Measured plans: kept on disk per device, taken before predicted ones, never trusted blindly."""

import json
from dataclasses import replace

import pytest

from distill.kernels.fused import tuning
from distill.kernels.fused.cost import DEVICES
from distill.kernels.fused.plan import Problem
from distill.kernels.fused.tuning import candidates, choose, tune, tuned_plan

H100, A100 = DEVICES["H100"], DEVICES["A100"]
PROBLEM = Problem(B=256, n=128_000, Dt=2048, Ds=512, dtype="bf16")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    tuning._kept.cache_clear()
    yield tmp_path
    tuning._kept.cache_clear()


def prefers(wanted):
    """Return a timer by which one plan is faster than all others."""
    return lambda plan: 1e-3 if plan == wanted else 2e-3


def unlikely():
    """Return a plan that the cost model does not choose."""
    predicted = choose(PROBLEM, H100)
    return next(plan for plan in reversed(candidates(PROBLEM, H100)) if plan != predicted)


def test_the_fastest_plan_is_kept_on_disk_and_taken(cache):
    best, measured = unlikely(), []

    def seconds(plan):
        measured.append(plan)
        return prefers(best)(plan)

    assert tune(PROBLEM, H100, seconds) == best
    assert measured == candidates(PROBLEM, H100)
    tuning._kept.cache_clear()  # as in another process
    assert tuned_plan(PROBLEM, H100) == best
    (file,) = (cache / "kernels").iterdir()
    assert file.name.startswith("H100-Triton-")
    (entry,) = json.loads(file.read_text())["plans"].values()
    assert entry["seconds"] == 1e-3


def test_a_plan_takes_effect_in_the_process_that_tuned():
    assert tuned_plan(PROBLEM, H100) is None  # remembers that there was no file
    best = tune(PROBLEM, H100, prefers(unlikely()))
    assert tuned_plan(PROBLEM, H100) == best


def test_another_devices_plans_are_not_taken():
    tune(PROBLEM, H100, prefers(unlikely()))
    assert tuned_plan(PROBLEM, A100) is None
    other = replace(H100, name="NVIDIA H100 PCIe")
    assert tuned_plan(PROBLEM, other) is None


def test_problems_of_a_kind_share_a_plan():
    best = tune(PROBLEM, H100, prefers(unlikely()))
    filling = tuned_plan(replace(PROBLEM, n=70_001, B=200), H100)
    assert (filling.record, filling.first, filling.second) == (best.record, best.first, best.second)
    assert filling.chunk == 70_001  # shares and chunks follow the exact sizes
    for change in (
        {"n": 60_000},
        {"B": 100},
        {"Ds": 1024},
        {"dtype": "fp16"},
        {"has_mask": True},
        {"Ds": 2048, "one_bank": True},
    ):
        assert tuned_plan(replace(PROBLEM, **change), H100) is None


def test_plans_of_several_problems_live_together():
    first = tune(PROBLEM, H100, prefers(unlikely()))
    masked = replace(PROBLEM, has_mask=True)
    second = tune(masked, H100, prefers(candidates(masked, H100)[0]))
    assert (tuned_plan(PROBLEM, H100), tuned_plan(masked, H100)) == (first, second)
    again = tune(PROBLEM, H100, prefers(second))
    assert tuned_plan(PROBLEM, H100) == again == second


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 0'),
        lambda text: text.replace('"plans"', '"plan"'),
        lambda text: '{"format": 1, "plans": 3}',
        lambda text: text.replace('"block_d"', '"block_x"'),
        lambda text: text.replace('"second"', '"third"'),
        lambda text: text.replace('"block_b": ', '"block_b": "'),
        lambda text: text.replace('anchors": {', 'anchors": 7, "x": {'),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(cache, damage):
    best = tune(PROBLEM, H100, prefers(unlikely()))
    (file,) = (cache / "kernels").iterdir()
    damaged = damage(file.read_text())
    assert damaged != file.read_text()
    file.write_text(damaged)
    tuning._kept.cache_clear()
    assert tuned_plan(PROBLEM, H100) is None
    assert tune(PROBLEM, H100, prefers(best)) == best
    assert tuned_plan(PROBLEM, H100) == best


def test_tiles_that_are_no_longer_shipped_are_not_taken(cache):
    tune(PROBLEM, H100, prefers(unlikely()))
    (file,) = (cache / "kernels").iterdir()
    file.write_text(file.read_text().replace('"num_stages": ', '"num_stages": 9'))
    tuning._kept.cache_clear()
    assert tuned_plan(PROBLEM, H100) is None


def test_plans_that_cannot_run_are_passed_over():
    running = candidates(PROBLEM, H100)[2]
    assert tune(PROBLEM, H100, lambda p: 1.0 if p == running else float("inf")) == running


def test_it_is_an_error_when_no_plan_can_run(cache):
    with pytest.raises(RuntimeError, match="no plan can run on H100"):
        tune(PROBLEM, H100, lambda _: float("inf"))
    assert not (cache / "kernels").exists()
