"""Trains and evaluates one trial in its own process.

A fresh process costs a few seconds per run. In return a run cannot leak memory into the next one,
a killed run does not affect the others, and its results cannot depend on the runs before it.

`launch` starts the process and sends the request as a line of JSON on standard input, which stays
open. The process writes the status file of the trial itself, so that nothing is lost if its parent
dies; when standard input ends, it finishes its step, writes a checkpoint and stops. It runs in its
own session, so that Ctrl-C reaches it only once, through `launch`.

Exit status: 0 done, 1 failed (the status file has the error), 130 or 143 stopped with a checkpoint.
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

import psutil

from distill.comparison.trial import TrialStatus, remove_checkpoints, write_status
from distill.errors import DistillError, NonFiniteLossError
from distill.evaluation.base import EvaluationOptions, evaluate
from distill.evaluation.standard import evaluate_standard
from distill.files import lock_folder
from distill.reports.run_facts import log_lines
from distill.run_directory import STUDENT, holds_run, read_metrics
from distill.terminal import log_to_console
from distill.training.configuration import configure
from distill.training.train import train

_POLL = 0.2  # seconds between checks of the clock and of signals
_PATIENCE = 600.0  # seconds to wait for a process whose parent was killed
_STDIN = 0


@dataclass(frozen=True)
class Request:
    """What one process trains and evaluates."""

    run: str  # the run directory
    status: str  # the status file
    options: dict[str, Any]  # of `distill train`
    identity: dict[str, Any]  # `Trial.identity`, kept in the status file
    linear: bool  # train the linear classifier, too
    keep_checkpoints: bool


def launch(
    request: Request, should_stop: Callable[[], bool], environment: Mapping[str, str]
) -> int:
    """Run a request in its own process; return its exit status.

    Args:
        request: What to run.
        should_stop: Whether the process must stop; an exception from it kills the process.
        environment: Environment variables added to our own.
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
        is_stopping = False
        while process.poll() is None:
            if should_stop() and not is_stopping:
                process.send_signal(signal.SIGTERM)
                is_stopping = True
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
    """Train and evaluate; return the exit status."""
    run, file = Path(request.run), Path(request.status)
    begun = psutil.Process().create_time()
    try:
        if run.is_dir():  # a process whose parent was killed may still write its checkpoint
            lock_folder(run, timeout=_PATIENCE).release()
        stopped_by = _train(request, run)
        if stopped_by is not None:
            return 130 if stopped_by == "SIGINT" else 143
        if request.linear:
            _measure(request, run)
        metrics = read_metrics(run)
        # A resumed run counts its whole training time, but only this start of the rest.
        seconds = max(time.time() - begun, float(metrics.get("train_seconds", 0.0)))
        curve = tuple(
            (int(line["epoch"]), float(line["holdout_nn_accuracy"]))
            for line in log_lines(run)
            if "holdout_nn_accuracy" in line and "epoch" in line
        )
        done = TrialStatus("done", request.identity, metrics, curve, round(seconds, 1))
        write_status(file, done)
    except (DistillError, NonFiniteLossError) as error:
        print(f"distill: error: {error}", file=sys.stderr)
        write_status(file, TrialStatus("failed", request.identity, error=str(error)))
        return 1
    except Exception as error:  # a bug or no memory; the other runs continue
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}; this is not a mistake in the grid"
        write_status(file, TrialStatus("failed", request.identity, error=message))
        return 1
    if not request.keep_checkpoints:
        remove_checkpoints(run)
    return 0


def is_trained(run: Path) -> bool:
    """Return whether a run has finished training."""
    return (run / STUDENT).exists() and "train_seconds" in read_metrics(run)


def _train(request: Request, run: Path) -> str | None:
    """Train to the end, unless that is done; return the signal that stopped it, if any."""
    if is_trained(run):
        return None
    options = {**request.options, "output": request.run, "resume": holds_run(run)}
    if request.linear and options["measure"] == "trained":
        options["measure"] = "none"  # `_measure` embeds the images once for all metrics
    return train(configure(options)).stopped_by


def _measure(request: Request, run: Path) -> None:
    """Add the metrics that training has not measured; the images are embedded once."""
    shared = ("device", "num_workers", "on_bad_image", "max_bad_images")
    given = {name: request.options[name] for name in shared if name in request.options}
    # The precision of the metrics of training; the folder is removed after the run.
    given |= {"cache": run / "embeddings", "cache_dtype": "fp32"}
    metrics = read_metrics(run)
    if "nn_accuracy" not in metrics:
        evaluate_standard(run, EvaluationOptions(**given))
    if "linear_accuracy" not in metrics:
        evaluate("linear", run, **given)


def _stop_with_parent() -> None:
    while os.read(_STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Read the request, perform it and exit."""
    line = b""
    while not line.endswith(b"\n"):  # not through sys.stdin, whose lock would be held at exit
        byte = os.read(_STDIN, 1)
        if not byte:
            raise SystemExit("no request on standard input")
        line += byte
    log_to_console()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(perform(Request(**json.loads(line))))


if __name__ == "__main__":
    main()
