"""Makes the runs of a comparison, one or more at a time, until all are made or someone says stop.

Every run has a process of its own (`distill.comparison.child`). That costs the start of Python
and PyTorch, some seconds of a run of minutes, and buys what a grid of a hundred runs needs: memory
that a run leaves behind is gone with it, a run that the system kills takes only itself along, and
a run's numbers cannot depend on which runs came before. The process has a session of its own, so
that Ctrl-C reaches it once and by way of this one.

A run that fails is written down with its sentence and the next one begins. A run that is killed
(by the system, for memory, or by a person) is neither done nor failed: the next sitting continues
it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from distill.comparison.cells import Cell, asked_options
from distill.comparison.child import Request
from distill.comparison.launch import launch_process
from distill.comparison.remaining_time import seconds_left
from distill.comparison.slots import slot_environments
from distill.comparison.state import (
    DONE,
    FAILED,
    STARTED,
    ComparisonDirectory,
    Outcome,
    remove_checkpoints,
)
from distill.comparison.tuning import tuned
from distill.terminal import described_seconds
from distill.training.loop import StopRequest

logger = logging.getLogger(__name__)

OUT_OF_TIME = "--stop-after"

# Runs one cell, told when to stop and what its environment has beyond ours; returns its exit
# status, negative when a signal ended it.
Launch = Callable[[Request, Callable[[], bool], Mapping[str, str]], int]


@dataclass(frozen=True)
class SittingOptions:
    """How one sitting goes.

    Attributes:
        stop_after: Minutes after which it ends; None: when all runs are made.
        keep_checkpoints: Whether finished runs keep theirs.
        jobs: Runs at a time.
    """

    stop_after: float | None = None
    keep_checkpoints: bool = False
    jobs: int = 1


def run_cells(
    cells: Sequence[Cell],
    everything: Mapping[str, Cell],
    directory: ComparisonDirectory,
    options: SittingOptions,
    *,
    linear: bool,
    launch: Launch | None = None,
    on_change: Callable[[], object] = lambda: None,
) -> str | None:
    """Make the runs that are not made yet.

    Args:
        cells: To be made, tuning runs before those that they choose for.
        everything: All cells of the grid by name.
        directory: Of the comparison; checked by `same.require_same_grid`.
        options: Of the sitting.
        linear: Whether the linear classifier is measured.
        launch: Runs one; None: in a process of its own.
        on_change: Called after every run that ended.

    Returns:
        None when no run is left to start, else what ended the sitting: a signal's name or
        `OUT_OF_TIME`.
    """
    launch = launch or launch_process
    free = slot_environments(options.jobs)
    end = None if options.stop_after is None else time.monotonic() + 60 * options.stop_after
    waiting = _not_made(cells, directory, options)
    running: dict[Future[int], tuple[Cell, dict[str, str]]] = {}
    is_abandoned = threading.Event()
    with StopRequest() as stop, ThreadPoolExecutor(options.jobs) as threads:

        def reason() -> str | None:
            is_late = end is not None and time.monotonic() >= end
            return stop.received or (OUT_OF_TIME if is_late else None)

        def should_stop() -> bool:
            if is_abandoned.is_set():
                raise KeyboardInterrupt  # which ends the process of the run at once
            return reason() is not None

        try:
            while True:
                while free and reason() is None:
                    open_names = {cell.name for cell, _ in running.values()}
                    started = _next_request(
                        waiting, open_names, everything, directory, options, linear=linear
                    )
                    if started is None:
                        break
                    cell, request = started
                    _announce(cell, cells, directory, len(running), options.jobs)
                    directory.write(cell.name, Outcome(STARTED, request.asked))
                    slot = free.pop(0)
                    running[threads.submit(launch, request, should_stop, slot)] = (cell, slot)
                if not running:
                    return reason() if _num_open(cells, directory) else None
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell, slot = running.pop(future)
                    free.append(slot)
                    _conclude(cell, cells, directory, future.result())
                    on_change()
        except BaseException:
            is_abandoned.set()  # a second Ctrl-C, or a defect
            raise


def _not_made(
    cells: Sequence[Cell], directory: ComparisonDirectory, options: SittingOptions
) -> list[Cell]:
    found = []
    for cell in cells:
        outcome = directory.outcome(cell.name)
        if outcome is None or outcome.state == STARTED:
            found.append(cell)
        elif outcome.state == DONE and not options.keep_checkpoints:
            remove_checkpoints(directory.run(cell.name))  # killed before it could
    return found


def _next_request(
    waiting: list[Cell],
    running: set[str],
    everything: Mapping[str, Cell],
    directory: ComparisonDirectory,
    options: SittingOptions,
    *,
    linear: bool,
) -> tuple[Cell, Request] | None:
    """Take the first cell that waits for no tuning run from `waiting`; None when there is none."""
    for cell in list(waiting):
        to_come = running.union(one.name for one in waiting)
        if to_come.intersection(cell.tuned_by):
            continue
        waiting.remove(cell)
        request = _request(cell, everything, directory, options, running=running, linear=linear)
        if request is not None:
            return cell, request
    return None


def _request(
    cell: Cell,
    everything: Mapping[str, Cell],
    directory: ComparisonDirectory,
    options: SittingOptions,
    *,
    running: Set[str],
    linear: bool,
) -> Request | None:
    """Return what is to be done; None while tuning is open, and when tuning failed."""
    choice = tuned(cell, everything, directory)
    if choice.error is not None:
        directory.write(cell.name, Outcome(FAILED, asked_options(cell, {}), error=choice.error))
        logger.info(f"{cell.name} is left out: {choice.error}")
    if choice.values is None:
        return None
    return Request(
        run=str(directory.run(cell.name)),
        outcome=str(directory.outcome_file(cell.name)),
        options={
            **{"measure": _measured(cell, everything.values(), directory, running)},
            **cell.options,
            **choice.values,
        },
        asked=asked_options(cell, choice.values),
        linear=linear and cell.tuning is None,
        keep_checkpoints=options.keep_checkpoints,
    )


def _measured(
    cell: Cell, cells: Iterable[Cell], directory: ComparisonDirectory, running: Set[str]
) -> str:
    """Return what a run measures: teacher and untrained student once for all methods of a seed."""
    if cell.tuning is not None:
        return "none"  # its check on held-out images is all that counts
    for other in cells:
        if other is cell or other.tuning is not None or _beside(other) != _beside(cell):
            continue
        outcome = directory.outcome(other.name)
        if outcome is not None and (
            other.name in running or "untrained_nn_accuracy" in outcome.metrics
        ):
            return "trained"
    return "all"


def _beside(cell: Cell) -> tuple[object, ...]:
    """Return what decides the numbers of the teacher and the untrained student."""
    own = ("teacher_view", "student_weights", "student_init")
    return cell.student, cell.teacher, cell.seed, *(cell.options.get(name) for name in own)


def _announce(
    cell: Cell, cells: Sequence[Cell], directory: ComparisonDirectory, num_running: int, jobs: int
) -> None:
    number = len(cells) - _num_open(cells, directory) + num_running + 1
    left = seconds_left(cells, directory)
    estimate = "" if left is None else f", about {described_seconds(left / jobs)} left"
    logger.info(f"run {number} of {len(cells)}{estimate}: {cell.name}")


def _conclude(
    cell: Cell, cells: Sequence[Cell], directory: ComparisonDirectory, status: int
) -> None:
    """Say what became of a run; one that neither ended nor said why is left as started."""
    outcome = directory.outcome(cell.name)
    assert outcome is not None
    if outcome.state == DONE:
        names = ("linear_accuracy", "nn_accuracy", "cluster_alignment")
        numbers = [f"{n} {outcome.metrics[n]:.4f}" for n in names if n in outcome.metrics]
        if cell.tuning is not None:
            numbers = [f"held out {outcome.holdout_nn_accuracy or float('nan'):.4f}"]
        took = described_seconds(outcome.seconds)
        logger.info(f"done in {took}: {cell.name}: {', '.join(numbers)}")
    elif outcome.state == FAILED:
        logger.info(f"failed, the others go on: {cell.name}: {outcome.error}")
    elif status < 0:
        logger.info(
            f"ended by {signal.Signals(-status).name}: {cell.name}; --resume goes on with it"
        )
    elif status not in (130, 143):
        logger.info(
            f"ended with status {status} and no word: {cell.name}; --resume goes on with it"
        )
    logger.info(f"{len(cells) - _num_open(cells, directory)} of {len(cells)} runs are made")


def _num_open(cells: Sequence[Cell], directory: ComparisonDirectory) -> int:
    outcomes = [directory.outcome(cell.name) for cell in cells]
    return sum(outcome is None or outcome.state == STARTED for outcome in outcomes)
