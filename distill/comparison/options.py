"""What `distill compare` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made."""

    output: Path | None = None
    """Directory of the comparison; None: under runs/, named after the grid's file."""
    resume: bool = False
    """Go on with what lies in the output directory, if anything does."""
    stop_after: float | None = None
    """Minutes after which to end, with a checkpoint of the run in progress."""
    jobs: int = 1
    """Runs at a time. Each gets its share of the cores and, where there are several, a GPU."""
    only: str | None = None
    """Make only runs whose name holds this shell pattern, and the tuning that they need."""
    retry_failed: bool = False
    """Make failed runs again; goes with --resume."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished runs, several times the size of all else."""
    dry_run: bool = False
    """Check the grid, print the runs and how long they will take, and stop."""
    table: bool = False
    """Write tables and page from what is there, without training."""
