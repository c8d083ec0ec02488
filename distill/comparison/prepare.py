"""Checks, before the first run, that every run of a comparison can be made.

Hours into a grid is too late to learn that a student's name is wrong. The options of every run are
checked, and each method is prepared once with each student and teacher, networks and all, exactly
as training will; what has been started has been through this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distill.comparison.cells import Cell
from distill.comparison.state import ComparisonDirectory
from distill.device import pick_device
from distill.errors import DistillError
from distill.training.configuration import check, configure
from distill.training.setup import prepare

logger = logging.getLogger(__name__)


def require_runnable(cells: Sequence[Cell], directory: ComparisonDirectory) -> None:
    """Refuse runs that cannot be made; writes nothing.

    Raises:
        DistillError: Naming the run, with the sentence that training would end with; data without
            validation labels, which nothing can be measured on.
    """
    new = [cell for cell in cells if directory.outcome(cell.name) is None]
    for cell in new:
        with _named(cell):
            check(configure(cell.options))
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        first.setdefault(cell.place, cell)
    places = [cell for cell in first.values() if cell in new]
    if places:
        logger.info(f"checking {len(places)} combinations of method, student and teacher")
    for cell in places:
        with _named(cell):
            _require_runnable(cell, directory)


@contextmanager
def _named(cell: Cell) -> Iterator[None]:
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{cell.name}: {error}") from error


def _require_runnable(cell: Cell, directory: ComparisonDirectory) -> None:
    config = configure({**cell.options, "output": directory.run(cell.name)})
    setting = prepare(config, pick_device(config.run.device)).setting
    reason = setting.evaluator.unavailable_reason()
    if reason is None and cell.tuning is not None:
        if not len(setting.images.held_out):
            reason = "no image is held out to tune on"
        elif config.run.nn_every == 0:
            reason = "nn_every: 0 turns off the check that tuning chooses by"
    if reason is not None:
        raise DistillError(reason)
