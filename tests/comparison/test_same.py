"""Runs that were made under other options stay out of a comparison that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from distill.comparison.job import compare
from distill.comparison.options import CompareOptions
from distill.errors import DistillError


@pytest.mark.parametrize("state", ["done", "half"])
def test_runs_made_under_other_options_are_not_mixed_in(
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
        assert f"{trainer.names[0]} was made with epochs 2 and the grid now asks for 3" in str(
            error.value
        )
        assert contents(output) == before
    # How runs are executed may change, and methods may be added.
    methods = {"one": {}, "two": {"variant": "two-queue-momentum"}, "three": {"temperature": 1.0}}
    wider = write_grid(common={"epochs": 2, "num_workers": 0}, methods=methods)
    result = compare(wider, CompareOptions(output, resume=True))
    assert (result.num_runs, result.num_open) == (6, 0)
    assert set(trainer.finished.values()) == {1}


def test_another_grid_is_refused_and_leaves_the_first_as_it_was(
    trainer, write_grid, output, contents
):
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
def test_a_value_to_try_comes_too_late_for_runs_that_are_there(
    trainer, write_grid, output, contents, state
):
    def grid(*rates: float, epochs: int = 2) -> Path:
        methods = {"one": {"tune": {"learning_rate": list(rates)}}}
        return write_grid(methods=methods, common={"epochs": epochs}, tune_epochs=1)

    if state == "half":
        trainer.at[trainer.name("one", 0), "half"] = "SIGTERM"
    compare(grid(0.1, 0.2), CompareOptions(output))
    before = contents(output)
    trainer.held_out = {0.4: 0.9}
    with pytest.raises(DistillError, match=r"one more value to try, .*0\.4; take it out of tune"):
        compare(grid(0.1, 0.2, 0.4), CompareOptions(output, resume=True))
    with pytest.raises(DistillError, match="was made with epochs 2 and the grid now asks for 9"):
        compare(grid(0.1, 0.2, 0.4, epochs=9), CompareOptions(output, resume=True))
    assert contents(output) == before
    assert compare(grid(0.1, 0.2), CompareOptions(output, resume=True)).num_open == 0
