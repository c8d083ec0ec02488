"""Batches that go on when a process that loads them dies.

The system kills loaders first when memory runs out, and what they had loaded is gone. A batch
follows from its number alone, so new loaders go on with the very next one.
"""

from __future__ import annotations

import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_sharer
from typing import TypeVar

from distill.errors import DistillError
from distill.terminal import say

Item = TypeVar("Item")

MAX_RESTARTS = 3
REMEDY = (
    "look for what killed it (memory? `dmesg` says so), lower --num-workers, or give a container "
    "more shared memory (docker run --shm-size)"
)
REMEDY_AT_THE_END = f"{REMEDY}, then start again, a training run with --resume"


def lasting_batches(make: Callable[[int], Iterable[Item]]) -> Iterator[Item]:
    """Yield the batches of a pass, each once.

    Args:
        make: Returns the batches that are left after so many.

    Raises:
        DistillError: A loader has died for the fourth time.
    """
    done = 0
    for left in range(MAX_RESTARTS, -1, -1):
        try:
            with _stops_held_back():
                batches = iter(make(done))
            _let_steps_finish()
            for batch in batches:
                done += 1
                yield batch
            return
        except (RuntimeError, OSError, EOFError) as error:
            reason = loader_death(error)
            if reason is None:
                raise
            if not left:
                raise DistillError(
                    f"{reason}, and so did others before; {REMEDY_AT_THE_END}"
                ) from error
        times = "once more" if left == 1 else f"{left} times at most"
        say(f"warning: {reason}; new ones are started, {times}; {REMEDY}")


@contextmanager
def _stops_held_back() -> Iterator[None]:
    """Start loaders that a stop sent to the whole job cannot reach, not even while they start.

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

    The dead loader is then noticed where its batch is waited for, within five seconds.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def loader_death(error: Exception) -> str | None:
    """Return which loader died of what; None when that is not what happened.

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
    found = re.search(r"pid(?:\(s\))? ([\d, ]+)", text)
    cause = re.search(r"killed by signal: ([^.]*)", text)
    which = f" (process {found[1].strip()})" if found else ""
    return f"a process that loads images{which} died" + (f" of {cause[1].strip()}" if cause else "")
