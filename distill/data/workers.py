"""The processes that load images: how many, what they share, and what happens when one dies.

Batches are handed over through shared memory, of which a container has 64 MiB unless told
otherwise; a worker that finds none left dies of a bus error, without a word of what was missing.
So batches that would not fit are refused beforehand. A worker that dies all the same ends the pass
with one sentence: a training run goes on exactly with `--resume`.

Where processes are forked (Linux up to Python 3.13) a worker inherits the set of images; elsewhere
the set is pickled.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any, TypeVar

import torch

from distill import distributed
from distill.data.images import Images
from distill.errors import DistillError, LoaderDiedError

T = TypeVar("T")

_MAX_WORKERS = 8
_SMALL_SET = 10_000
_SHARED_MEMORY = Path("/dev/shm")
_PREFETCHED = 2  # batches that a worker has ready, PyTorch's default
_IN_USE = 2  # batches that are waited for and trained on


def num_usable_cores() -> int:
    """Return the cores this process may run on, which a container or scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_num_workers(images: Images) -> int:
    """Return how many worker processes suit the images: none for a small set held in memory.

    Otherwise one for each core this process may use, at most eight; ranks share out the cores.
    """
    if images.in_memory and len(images) <= _SMALL_SET:
        return 0
    return min(_MAX_WORKERS, max(1, num_usable_cores() // distributed.num_local_ranks()))


def worker_settings(images: Images, num_workers: int | None) -> dict[str, Any]:
    """Return the arguments that every `DataLoader` gets; None: `default_num_workers`."""
    return {
        "num_workers": default_num_workers(images) if num_workers is None else num_workers,
        "worker_init_fn": _start_worker,
        # A loader draws a seed for its workers when iteration starts: not from the global
        # generator, whose state the run saves and restores.
        "generator": torch.Generator(),
    }


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    # A terminal and a cluster's queue send these to every process of a job: the parent, which ends
    # its workers when it is done with them, is the one to finish a step and to keep a checkpoint.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def require_shared_memory(
    batch_size: int, view_sizes: Sequence[int], num_workers: int, *, num_processes: int = 1
) -> None:
    """Refuse more workers than shared memory has room for.

    Args:
        batch_size: Images of a batch in one process.
        view_sizes: Sides in pixels of the views of an image.
        num_workers: Processes that load images, of one process.
        num_processes: Processes that train on this machine.

    Raises:
        DistillError: Naming what is needed, what there is and what to do.
    """
    if num_workers == 0 or not _SHARED_MEMORY.is_dir():
        return
    batch_bytes = batch_size * sum(3 * side * side for side in view_sizes)
    needed = num_processes * (num_workers * _PREFETCHED + _IN_USE) * batch_bytes
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise DistillError(
            f"{num_workers} workers with batches of {batch_size} hand over up to "
            f"{needed / 2**20:,.0f} MiB at a time and {_SHARED_MEMORY} has {free / 2**20:,.0f} MiB "
            "left; lower --num-workers or --batch-size, or give the container more "
            "(docker run --shm-size)"
        )


def guarded_batches(make: Callable[[], Iterable[T]]) -> Iterator[T]:
    """Yield the batches of a pass; a worker that dies ends it with one sentence.

    Args:
        make: Starts the workers and returns their batches, such as `lambda: loader`.

    Raises:
        LoaderDiedError: Naming the process and what killed it, where that is known.
        DistillError: The images cannot be sent to a worker.
    """
    try:
        with _stop_signals_blocked():
            batches = iter(make())
        _let_steps_finish()
        yield from batches
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error):
            raise
        raise DistillError(
            f"the images cannot be sent to the processes that load them ({error}); define the "
            "dataset's class at the top level of a module, without open files or lambdas, or load "
            "in this process (--num-workers 0)"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        reason = _worker_death(error)
        if reason is None:
            raise
        raise LoaderDiedError(
            f"{reason}; look for what killed it (memory? `dmesg` says so), lower --num-workers, or "
            "give a container more shared memory (docker run --shm-size), then start again, a "
            "training run with --resume"
        ) from error


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Start workers that a stop sent to the whole job cannot reach, not even while they start.

    They inherit what is blocked here, and ignore both signals themselves once they have begun.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_steps_finish() -> None:
    """Take back the handler by which PyTorch raises at once, in the middle of a step, perhaps.

    The dead worker is then noticed where its batch is waited for, within five seconds.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _worker_death(error: Exception) -> str | None:
    """Return which worker died of what; None when that is not what happened.

    PyTorch names the process, unless it was still dying when the memory of its batch was asked
    of it: then the connection ends in `multiprocessing.resource_sharer`.
    """
    if not isinstance(error, RuntimeError):
        frames = traceback.walk_tb(error.__traceback__)
        asked = any(
            frame.f_globals.get("__name__") == resource_sharer.__name__ for frame, _ in frames
        )
        return "a process that loads images died" if asked else None
    text = " ".join(str(error).split())
    if not text.startswith("DataLoader worker"):
        return None
    process = re.search(r"pid(?:\(s\))? ([\d, ]+)", text)
    cause = re.search(r"killed by signal: ([^.]*)", text)
    which = f" (process {process[1].strip()})" if process else ""
    return f"a process that loads images{which} died" + (f" of {cause[1].strip()}" if cause else "")
