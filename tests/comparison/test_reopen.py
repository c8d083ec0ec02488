"""Runs that have ended and are opened again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from distill.comparison.job import compare
from distill.comparison.options import CompareOptions
from distill.errors import DistillError, NonFiniteLossError


def test_a_failed_run_may_be_retried_with_other_options(trainer, write_grid, output):
    trainer.at[trainer.names[0], "half"] = NonFiniteLossError("nan")
    trainer.at[trainer.names[2], "half"] = NonFiniteLossError("nan")
    compare(write_grid(), CompareOptions(output))
    methods = {"one": {"clip_grad_norm": 1.0}, "two": {"variant": "two-queue-momentum"}}
    mended = write_grid(methods=methods)
    with pytest.raises(DistillError, match="or retry it with --retry-failed"):
        compare(mended, CompareOptions(output, resume=True))
    assert compare(mended, CompareOptions(output, resume=True, retry_failed=True)).num_failed == 0
    assert trainer.begun == Counter(
        {trainer.names[0]: 2, trainer.names[1]: 1, trainer.names[2]: 2, trainer.names[3]: 1}
    )


def test_failed_runs_are_retried_where_asked_and_only_when_nothing_is_refused(
    trainer, write_grid, output, contents
):
    for method in ("one", "two"):
        trainer.at[trainer.name(method, 1), "half"] = NonFiniteLossError("nan")
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
    failed = json.loads((output / "cells" / f"{trainer.name('two', 1)}.json").read_text())
    assert failed["state"] == "failed"
    assert (output / "runs" / trainer.name("two", 1)).exists()


def test_a_measure_that_is_asked_for_later_is_made_of_what_is_trained(trainer, write_grid, output):
    compare(write_grid(linear=False, seeds=[0]), CompareOptions(output))
    shutil.rmtree(output / "runs" / trainer.name("two", 0))
    grid = write_grid()
    assert compare(grid, CompareOptions(output, dry_run=True)).num_open == 3
    result = compare(grid, CompareOptions(output, resume=True))
    assert trainer.finished == Counter(trainer.names)
    assert trainer.linear == Counter(
        set(trainer.names) - {trainer.name("two", 0)}
    )  # whose student is gone
    one, two, *_ = result.content.tables[0].rows
    assert (one.values["linear_accuracy"].num, two.values["linear_accuracy"].num) == (2, 1)
    assert "Not every run has measured linear: two." in result.content.tables[0].remarks()
