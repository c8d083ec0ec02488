"""Checks, before the first run, that every run of a comparison can be made.

Hours into a grid is too late to learn that a student's name is wrong. Each method is prepared once
with each student and teacher, networks and all, exactly as training will; seeds and tuned values
do not change what can be refused, and what has been started has been through this.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill.engine.device import pick_device
from distill.errors import DistillError
from distill.jobs.comparison.cells import Cell
from distill.jobs.comparison.state import ComparisonDirectory
from distill.jobs.configure import configure
from distill.jobs.prepare import prepare
from distill.terminal import say


def require_runnable(cells: Sequence[Cell], directory: ComparisonDirectory) -> None:
    """Refuse runs that cannot be made; writes nothing.

    Raises:
        DistillError: Naming the run, with the sentence that training would end with; data without
            validation labels, which nothing can be measured on.
    """
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        first.setdefault(cell.place, cell)
    new = [cell for cell in first.values() if directory.outcome(cell.name) is None]
    if new:
        say(f"checking {len(new)} combinations of method, student and teacher")
    for cell in new:
        try:
            _require_runnable(cell, directory)
        except DistillError as error:
            raise DistillError(f"{cell.name}: {error}") from error


def _require_runnable(cell: Cell, directory: ComparisonDirectory) -> None:
    config = configure({**cell.options, "output": directory.run(cell.name)})
    setting = prepare(config, pick_device(config.run.device)).setting
    reason = setting.evaluator.why_not()
    if reason is None and cell.tuning is not None:
        reason = None if len(setting.images.held_out) else "no image is held out to tune on"
    if reason is not None:
        raise DistillError(reason)
