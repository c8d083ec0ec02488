"""What people see while something runs: lines, progress bars, durations.

With several processes only the first speaks.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from distill import distributed


def progress_bar(
    total: int | None,
    *,
    initial: int = 0,
    description: str,
    unit: str = "img",
    delay: float = 0.0,
) -> Any:
    """Return a bar on standard error, shown only on a terminal.

    Args:
        total: What it counts to; None where that is not known.
        initial: Where it starts.
        description: What stands before it.
        unit: What it counts; bytes ("B") are shown in kB, MB and so on.
        delay: Seconds until it is shown.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        disable=None if distributed.is_main() else True,
        dynamic_ncols=True,
        smoothing=0.05,
        delay=delay,
    )


def say(message: str) -> None:
    """Print a line for people on standard output without breaking a progress bar."""
    if distributed.is_main():
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def described_seconds(seconds: float) -> str:
    """Say a duration in hours and minutes, or in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
