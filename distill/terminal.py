"""Log lines and progress bars on the console.

With several processes only the first prints. Where standard error is a file instead of a terminal,
a progress bar is a line a minute.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

from tqdm import tqdm

from distill import distributed

SECONDS_PER_LINE = 60.0


class _Lines(tqdm):
    """Progress in a file: a line a minute, none for what takes less."""

    def __init__(self, **options: Any) -> None:
        options |= {"dynamic_ncols": False, "ncols": 0, "leave": False}
        every = {"mininterval": SECONDS_PER_LINE, "maxinterval": 2 * SECONDS_PER_LINE}
        super().__init__(**(options | every | {"delay": SECONDS_PER_LINE}))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # it is cleared by an empty one
            print(self, file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """There is nothing to clear in a file."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        if not nolock:  # that is `tqdm.write`, which puts back what it cleared
            super().refresh(lock_args=lock_args)

    def set_postfix(self, *values: Any, **numbers: Any) -> None:
        super().set_postfix(*values, **(numbers | {"refresh": False}))

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh=False)


def progress_bar(
    total: int | None,
    *,
    initial: int = 0,
    description: str,
    unit: str = "img",
    delay: float = 0.0,
) -> Any:
    """Return a bar on standard error; without a terminal it is a line a minute.

    Args:
        total: What it counts to; None where that is not known.
        initial: Where it starts.
        description: What stands before it.
        unit: What it counts; bytes ("B") are shown in kB, MB and so on.
        delay: Seconds until it is shown.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        disable=not distributed.is_main(),
        dynamic_ncols=True,
        smoothing=0.05,
        delay=delay,
    )


class ConsoleHandler(logging.Handler):
    """Prints log records on standard output without breaking a progress bar, on the first rank."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line; a warning begins with that word."""
        if not distributed.is_main():
            return
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to_console() -> None:
    """Print the toolkit's log lines on standard output; calling it again changes nothing."""
    toolkit = logging.getLogger("distill")
    if not any(isinstance(handler, ConsoleHandler) for handler in toolkit.handlers):
        toolkit.addHandler(ConsoleHandler())
    toolkit.setLevel(logging.INFO)


def described_seconds(seconds: float) -> str:
    """Return a duration in hours and minutes, or in minutes and seconds."""
    if not math.isfinite(seconds):  # read from a file
        return "an unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
