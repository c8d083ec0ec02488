"""Runs the trials of a comparison, one or more at a time.

Each trial has its own process (`distill.comparison.worker`) with an equal share of the cores and,
if there are several GPUs, its own GPU: PyTorch processes that each start a thread for every core
slow each other down many times, and processes on one GPU share its memory.

A failed trial is recorded with its error message, and the next one starts. A killed trial is
neither done nor failed: --resume continues it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from statistics import mean

from distill.comparison.trial import Comparison, Trial, TrialStatus, remove_checkpoints
from distill.comparison.worker import Request, launch
from distill.data.workers import num_usable_cores
from distill.device import pick_device
from distill.errors import DistillError
from distill.reports.comparison_tables import MEASURES
from distill.terminal import described_seconds
from distill.training.configuration import check, configure
from distill.training.loop import StopRequest
from distill.training.setup import prepare

logger = logging.getLogger(__name__)

OUT_OF_TIME = "--stop-after"


def require_runnable(comparison: Comparison, trials: Sequence[Trial]) -> None:
    """Check all trials before the first run, so that none fails hours later; writes nothing.

    The options of every trial are checked, and each combination of method, student and teacher is
    set up once, with its networks, exactly as for training.

    Raises:
        DistillError: Naming the trial, with the message of training; or no labeled validation
            images to evaluate on.
    """
    new = [trial for trial in trials if trial.name not in comparison.statuses]
    for trial in new:
        with _named(trial):
            check(configure(trial.options))
    first: dict[tuple[str, str, str], Trial] = {}
    for trial in trials:
        first.setdefault(trial.place, trial)
    places = [trial for trial in first.values() if trial in new]
    if places:
        logger.info(f"checking {len(places)} combinations of method, student and teacher")
    for trial in places:
        with _named(trial):
            config = configure({**trial.options, "output": comparison.run(trial.name)})
            setup = prepare(config, pick_device(config.run.device))
            reason = setup.embedder.unavailable_reason()
            if reason is None and trial.tuning is not None:
                if not len(setup.images.held_out):
                    reason = "no image is held out to tune on"
                elif config.run.nn_every == 0:
                    reason = "nn_every: 0 turns off the check that tuning chooses by"
            if reason is not None:
                raise DistillError(reason)


@contextmanager
def _named(trial: Trial) -> Iterator[None]:
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{trial.name}: {error}") from error


def slot_environments(jobs: int) -> list[dict[str, str]]:
    """Return the environment variables to add for each of `jobs` concurrent trials."""
    import torch

    if jobs == 1:
        return [{}]
    threads = str(max(1, num_usable_cores() // jobs))
    cores = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    number = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(number)))
    devices = [name.strip() for name in visible.split(",")][:number]
    if len(devices) < 2:
        return [cores] * jobs
    return [{**cores, "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} for slot in range(jobs)]


def seconds_left(comparison: Comparison, trials: Sequence[Trial]) -> float | None:
    """Estimate how long the open trials will take; None if none has finished.

    The estimate is the mean time per epoch of the same method and student, else of the same
    student, else of all. The first trial of a teacher also embeds the images and counts only if
    there are no others.
    """
    made = [
        (trial, comparison.statuses[trial.name].seconds / _num_epochs(trial))
        for trial in trials
        if comparison.state(trial.name) == "done"
    ]
    first = {trial.teacher: trial for trial, _ in reversed(made)}
    made = [one for one in made if first[one[0].teacher] is not one[0]] or made
    left = [trial for trial in trials if comparison.is_open(trial.name)]
    if left and not made:
        return None
    return sum(_num_epochs(trial) * _seconds_per_epoch(trial, made) for trial in left)


def _seconds_per_epoch(trial: Trial, made: Sequence[tuple[Trial, float]]) -> float:
    student = [(one, seconds) for one, seconds in made if one.student == trial.student]
    method = [(one, seconds) for one, seconds in student if one.method.name == trial.method.name]
    return mean(seconds for _, seconds in method or student or made)


def _num_epochs(trial: Trial) -> float:
    """Return the epochs of a trial, from the grid or from the recipe."""
    return float(trial.options.get("epochs") or trial.budget()["epochs"] or 1)


class Runner:
    """Runs trials.

    Args:
        comparison: The comparison; its directory exists and is locked.
        trials: The trials to run, tuning runs first.
        stop_after: Minutes after which to stop; None: when all trials are finished.
        jobs: Trials at a time.
        keep_checkpoints: Keep the checkpoints of finished trials.
        on_change: Called after every trial.
    """

    def __init__(
        self,
        comparison: Comparison,
        trials: Sequence[Trial],
        *,
        stop_after: float | None = None,
        jobs: int = 1,
        keep_checkpoints: bool = False,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self.comparison, self.trials = comparison, trials
        self.jobs, self.keep_checkpoints, self.on_change = jobs, keep_checkpoints, on_change
        self.end = None if stop_after is None else time.monotonic() + 60 * stop_after
        self.waiting = [trial for trial in trials if comparison.is_open(trial.name)]
        self.running: dict[Future[int], tuple[Trial, dict[str, str]]] = {}

    def run(self) -> str | None:
        """Run the open trials; return None at the end, else the signal or `OUT_OF_TIME`."""
        if not self.keep_checkpoints:
            for trial in self.trials:
                if self.comparison.state(trial.name) == "done":
                    remove_checkpoints(self.comparison.run(trial.name))  # if it was killed first
        free = slot_environments(self.jobs)
        is_abandoned = threading.Event()
        with StopRequest() as stop, ThreadPoolExecutor(self.jobs) as threads:

            def stopped_by() -> str | None:
                is_late = self.end is not None and time.monotonic() >= self.end
                return stop.received or (OUT_OF_TIME if is_late else None)

            def should_stop() -> bool:
                if is_abandoned.is_set():
                    raise KeyboardInterrupt  # kills the process of the trial
                return stopped_by() is not None

            try:
                while True:
                    while free and stopped_by() is None:
                        started = self._next()
                        if started is None:
                            break
                        slot = free.pop(0)
                        future = threads.submit(launch, self._start(started), should_stop, slot)
                        self.running[future] = started, slot
                    if not self.running:
                        return stopped_by() if self.comparison.num_open(self.trials) else None
                    for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                        trial, slot = self.running.pop(future)
                        free.append(slot)
                        self.comparison.load_status(trial.name)
                        self._report(trial, future.result())
                        self.on_change()
            except BaseException:
                is_abandoned.set()  # a second Ctrl-C, or a bug
                raise

    def _next(self) -> Trial | None:
        """Take the first waiting trial whose tuning is finished."""
        for trial in list(self.waiting):
            unfinished = {one.name for one, _ in self.running.values()}
            unfinished.update(one.name for one in self.waiting)
            if unfinished.intersection(trial.tuned_by):
                continue
            self.waiting.remove(trial)
            if self.comparison.tuned_values(trial) is not None:
                return trial
            if not any(map(self.comparison.is_open, trial.tuned_by)):
                error = "none of its tuning runs has an accuracy on held-out images"
                self.comparison.set_status(
                    trial.name, TrialStatus("failed", trial.identity({}), error=error)
                )
                logger.info(f"{trial.name} is skipped: {error}")
        return None

    def _start(self, trial: Trial) -> Request:
        chosen = self.comparison.tuned_values(trial) or {}
        number = len(self.trials) - self.comparison.num_open(self.trials) + len(self.running) + 1
        left = seconds_left(self.comparison, self.trials)
        estimate = "" if left is None else f", about {described_seconds(left / self.jobs)} left"
        logger.info(f"run {number} of {len(self.trials)}{estimate}: {trial.name}")
        request = Request(
            run=str(self.comparison.run(trial.name)),
            status=str(self.comparison.status_file(trial.name)),
            options={"measure": self._measured(trial), **trial.options, **chosen},
            identity=trial.identity(chosen),
            linear=self.comparison.grid.linear and trial.tuning is None,
            keep_checkpoints=self.keep_checkpoints,
        )
        self.comparison.set_status(trial.name, TrialStatus("started", request.identity))
        return request

    def _measured(self, trial: Trial) -> str:
        """Return --measure: "all" for one trial of each teacher, untrained student and seed."""
        if trial.tuning is not None:
            return "none"  # only its accuracy on held-out images counts
        running = {one.name for one, _ in self.running.values()}
        for other in self.comparison.trials.values():
            if other is trial or other.tuning is not None or _untrained(other) != _untrained(trial):
                continue
            status = self.comparison.statuses.get(other.name)
            if status and (other.name in running or "untrained_nn_accuracy" in status.metrics):
                return "trained"
        return "all"

    def _report(self, trial: Trial, exit_status: int) -> None:
        """Log the result of a trial; a killed one stays started."""
        status = self.comparison.statuses[trial.name]
        if status.state == "done":
            numbers = [f"{n} {status.metrics[n]:.4f}" for n in MEASURES if n in status.metrics]
            if trial.tuning is not None:
                numbers = [f"held out {status.holdout_nn_accuracy or float('nan'):.4f}"]
            took = described_seconds(status.seconds)
            logger.info(f"done in {took}: {trial.name}: {', '.join(numbers)}")
        elif status.state == "failed":
            logger.info(f"failed, the others continue: {trial.name}: {status.error}")
        elif exit_status not in (130, 143):
            by = f"with status {exit_status} without a message"
            if exit_status < 0:
                by = f"by {signal.Signals(-exit_status).name}"
            logger.info(f"ended {by}: {trial.name}; continue it with --resume")
        num_finished = len(self.trials) - self.comparison.num_open(self.trials)
        logger.info(f"{num_finished} of {len(self.trials)} runs are finished")


def _untrained(trial: Trial) -> tuple[object, ...]:
    """Return what decides the metrics of the teacher and the untrained student."""
    own = ("teacher_view", "student_weights", "student_init")
    return trial.student, trial.teacher, trial.seed, *(trial.options.get(name) for name in own)
