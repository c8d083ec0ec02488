"""Trains and measures one trial in a process of its own.

The start of Python and PyTorch costs some seconds of a run of minutes, and buys what a grid of a
hundred runs needs: memory that a run leaves behind is gone with it, a run that the system kills
takes only itself along, and a run's numbers cannot depend on which runs came before.

`launch` starts the process with a request, a line of JSON, on standard input, which it keeps open.
The process writes what became of the trial itself, so that nothing is lost when the one that
started it dies; when standard input ends, it stops: it finishes its step and writes a checkpoint.
It has a session of its own, so that Ctrl-C reaches it once, by way of `launch`.

Exit status: 0 done, 1 failed (the record says why), 130 or 143 stopped with a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from distill.comparison.trial import TrialStatus, remove_checkpoints, write_status
from distill.errors import DistillError, NonFiniteLossError
from distill.evaluation.base import EvaluationOptions, evaluate
from distill.evaluation.standard import evaluate_standard
from distill.reports.run_facts import log_lines
from distill.run_directory import STUDENT, read_metrics
from distill.terminal import log_to_console
from distill.training.configuration import configure
from distill.training.train import train

_POLL = 0.2  # seconds between looks at the clock and at signals
_PATIENCE = 600.0  # seconds that a process whose parent was killed may take to end
_STDIN = 0


@dataclass(frozen=True)
class Request:
    """What one process is to do.

    Attributes:
        run: The run directory.
        status: File that says what became of the trial.
        options: Of `distill train`.
        identity: Kept in the record.
        linear: Whether to measure the linear classifier, too.
        keep_checkpoints: Whether they stay when the run is done.
    """

    run: str
    status: str
    options: dict[str, Any]
    identity: dict[str, Any]
    linear: bool
    keep_checkpoints: bool


def launch(
    request: Request, should_stop: Callable[[], bool], environment: Mapping[str, str]
) -> int:
    """Perform a request in a process of its own; return its exit status.

    Args:
        request: What to run.
        should_stop: Whether the process is to be told to stop; an error ends it at once.
        environment: What the process has beyond our own environment.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.comparison.worker"],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        process.stdin.flush()
        is_told = False
        while process.poll() is None:
            if should_stop() and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            time.sleep(_POLL)
    except BrokenPipeError:
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
    return int(process.returncode)


def perform(request: Request) -> int:
    """Train and measure; return the exit status."""
    run, file = Path(request.run), Path(request.status)
    begun = psutil.Process().create_time()
    try:
        _wait_until_free(run)
        stopped_by = _train(request, run)
        if stopped_by is not None:
            return 130 if stopped_by == "SIGINT" else 143
        if request.linear:
            _measure(request, run)
        metrics = read_metrics(run)
        # Of a run that was stopped in between the training counts whole, the rest once.
        seconds = max(time.time() - begun, float(metrics.get("train_seconds", 0.0)))
        curve = _holdout_curve(run)
        done = TrialStatus("done", request.identity, metrics, curve, round(seconds, 1))
        write_status(file, done)
    except (DistillError, NonFiniteLossError) as error:
        print(f"distill: error: {error}", file=sys.stderr)
        write_status(file, TrialStatus("failed", request.identity, error=str(error)))
        return 1
    except Exception as error:  # a defect, or memory; the other runs of the grid go on
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}; it is no mistake in the grid"
        write_status(file, TrialStatus("failed", request.identity, error=words))
        return 1
    if not request.keep_checkpoints:
        remove_checkpoints(run)
    return 0


def is_trained(run: Path) -> bool:
    """Return whether training has written its last number."""
    return (run / STUDENT).exists() and "train_seconds" in read_metrics(run)


def _wait_until_free(run: Path) -> None:
    """Wait for a process whose parent was killed, and which is writing its checkpoint."""
    if not run.is_dir():
        return
    try:
        with filelock.FileLock(run / ".lock", timeout=_PATIENCE):
            pass
    except filelock.Timeout as error:
        raise DistillError(f"{run} is in use by another process; wait for its end") from error


def _train(request: Request, run: Path) -> str | None:
    """Train to the end, unless that is done; return the signal that stopped it, if any."""
    if is_trained(run):
        return None
    is_begun = (run / "config.yaml").exists()
    options = {**request.options, "output": request.run, "resume": is_begun}
    if request.linear and options["measure"] == "trained":
        options["measure"] = "none"  # the pass of the linear classifier serves all three
    return train(configure(options)).stopped_by


def _measure(request: Request, run: Path) -> None:
    """Add the numbers that training has not measured, from one pass over the images."""
    shared = ("device", "num_workers", "on_bad_image", "max_bad_images")
    given = {name: request.options[name] for name in shared if name in request.options}
    # As exact as what training measures; the folder goes when the run is done.
    given |= {"cache": run / "embeddings", "cache_dtype": "fp32"}
    metrics = read_metrics(run)
    if "nn_accuracy" not in metrics:
        evaluate_standard(run, EvaluationOptions(**given))
    if "linear_accuracy" not in metrics:
        evaluate("linear", run, **given)


def _holdout_curve(run: Path) -> tuple[tuple[int, float], ...]:
    """Return epoch and accuracy of every check on held-out training images in a run's log."""
    return tuple(
        (int(line["epoch"]), float(line["holdout_nn_accuracy"]))
        for line in log_lines(run)
        if "holdout_nn_accuracy" in line and "epoch" in line
    )


def _read_request() -> Request:
    # Not through sys.stdin: its lock would be held when the interpreter ends.
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(_STDIN, 1)
        if not part:
            raise SystemExit("no request on standard input")
        line += part
    return Request(**json.loads(line))


def _stop_with_parent() -> None:
    while os.read(_STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Read the request, perform it and exit."""
    request = _read_request()
    log_to_console()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(perform(request))


if __name__ == "__main__":
    main()
