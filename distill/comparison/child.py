"""Trains and measures one run of a comparison, in a process of its own.

Started by `distill.comparison.sitting` with a request, a line of JSON, on standard input. What
became of the run is written by this process, so that nothing is lost when the one that started it
dies. That one keeps standard input open as long as it lives; when it ends, whatever ended it, this
process is told to stop by itself: it finishes its step and writes a checkpoint.

Exit status: 0 done, 1 failed (and the outcome says why), 130 or 143 stopped with a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from distill.comparison.state import DONE, FAILED, Outcome, remove_checkpoints, write_outcome
from distill.errors import DistillError, NonFiniteLossError

_PATIENCE = 600.0  # seconds that a run of an earlier sitting may take to end
_STDIN = 0


@dataclass(frozen=True)
class Request:
    """What one process is to do.

    Attributes:
        run: The run directory.
        outcome: File that says what became of it.
        options: Of `distill train`.
        asked: Kept in the outcome.
        linear: Whether to measure the linear classifier, too.
        keep_checkpoints: Whether they stay when the run is done.
    """

    run: str
    outcome: str
    options: dict[str, Any]
    asked: dict[str, Any]
    linear: bool
    keep_checkpoints: bool

    def line(self) -> bytes:
        """Return the request as it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


def perform(request: Request) -> int:
    """Train and measure; return the exit status."""
    run, outcome = Path(request.run), Path(request.outcome)
    begun = psutil.Process().create_time()
    try:
        _wait_until_free(run)
        stopped_by = _train(request, run)
        if stopped_by is not None:
            return 130 if stopped_by == "SIGINT" else 143
        _measure(request, run)
        write_outcome(outcome, _outcome(request, run, seconds=time.time() - begun))
    except (DistillError, NonFiniteLossError) as error:
        print(f"distill: error: {error}", file=sys.stderr)
        write_outcome(outcome, Outcome(FAILED, request.asked, error=str(error)))
        return 1
    except Exception as error:  # a defect, or memory; the other runs of the grid go on
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}; it is no mistake in the grid"
        write_outcome(outcome, Outcome(FAILED, request.asked, error=words))
        return 1
    if not request.keep_checkpoints:
        remove_checkpoints(run)
    return 0


def _train(request: Request, run: Path) -> str | None:
    """Train to the end, unless that is done; return the signal that stopped it, if any."""
    from distill.training.configuration import configure
    from distill.training.train import train

    if is_trained(run):
        return None
    is_begun = (run / "config.yaml").exists()
    options = {**request.options, "output": request.run, "resume": is_begun}
    if request.linear and options["measure"] == "trained":
        options["measure"] = "none"  # the pass of the linear classifier serves all three
    return train(configure(options)).stopped_by


def _measure(request: Request, run: Path) -> None:
    """Add the numbers that training has not measured, from one pass over the images."""
    from distill.evaluation.linear import LinearOptions, evaluate_linear
    from distill.evaluation.standard import evaluate_standard
    from distill.run_directory import read_metrics

    if not request.linear:
        return
    shared = ("device", "num_workers", "on_bad_image", "max_bad_images")
    given = {name: request.options[name] for name in shared if name in request.options}
    # As exact as what training measures; the folder goes when the run is done.
    options = LinearOptions(cache=run / "embeddings", cache_dtype="fp32", **given)
    metrics = read_metrics(run)
    if "nn_accuracy" not in metrics:
        evaluate_standard(run, options)
    if "linear_accuracy" not in metrics:
        evaluate_linear(run, options)


def _outcome(request: Request, run: Path, *, seconds: float) -> Outcome:
    from distill.run_directory import read_metrics

    metrics = read_metrics(run)
    return Outcome(
        state=DONE,
        asked=request.asked,
        metrics=metrics,
        holdout_curve=holdout_curve(run),
        # Of a run of several sittings the training counts whole, the rest once.
        seconds=round(max(seconds, float(metrics.get("train_seconds", 0.0))), 1),
    )


def is_trained(run: Path) -> bool:
    """Say whether training has written its last number."""
    from distill.run_directory import STUDENT, read_metrics

    return (run / STUDENT).exists() and "train_seconds" in read_metrics(run)


def holdout_curve(run: Path) -> list[tuple[int, float]]:
    """Return epoch and accuracy of every check on held-out training images in a run's log."""
    from distill.reports.run_facts import log_lines

    return [
        (int(line["epoch"]), float(line["holdout_nn_accuracy"]))
        for line in log_lines(run)
        if "holdout_nn_accuracy" in line and "epoch" in line
    ]


def _wait_until_free(run: Path) -> None:
    """Wait for the process of a sitting that was killed, which is writing its checkpoint."""
    if not run.is_dir():
        return
    lock = filelock.FileLock(run / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout as error:
        raise DistillError(f"{run} is in use by another process; wait for its end") from error
    lock.release()


def _read_request() -> Request:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(_STDIN, 1)
        if not part:
            raise SystemExit("no request on standard input")
        line += part
    return Request(**json.loads(line))


def _stop_with_parent() -> None:
    # Not through sys.stdin: its lock would be held when the interpreter ends.
    while os.read(_STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Read the request, perform it and exit."""
    request = _read_request()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(perform(request))


if __name__ == "__main__":
    main()
