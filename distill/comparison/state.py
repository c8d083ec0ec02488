"""What a comparison has on the disk: a small file for each run, renamed into place.

    OUTPUT/grid.yaml          the grid
    OUTPUT/runs/NAME/         the run, a directory as `distill train` leaves it
    OUTPUT/cells/NAME.json    what became of it: started, done or failed, options, numbers, curve
    OUTPUT/comparison.json, comparison.md, comparison.html

A run that was killed has `started` there, and its checkpoints: it goes on from the newest. Of one
that is done, tables, page and --resume need the second file alone, so that a comparison can be kept
beside code without its run directories.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from distill.errors import DistillError
from distill.files import atomic_write
from distill.parsing import as_dataclass, parse_json

STARTED: Final = "started"
DONE: Final = "done"
FAILED: Final = "failed"
GRID = "grid.yaml"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        state: `started`, `done` or `failed`.
        asked: Every option that decides what the run is.
        metrics: As in metrics.json, when done.
        holdout_curve: Epoch and nearest-neighbor accuracy of every check on held-out training
            images.
        seconds: Time it took, over all sittings, waiting between them left out.
        error: Why it failed, a sentence.
    """

    state: Literal["started", "done", "failed"]
    asked: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    holdout_curve: Sequence[tuple[int, float]] = ()
    seconds: float = 0.0
    error: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the run has begun and not ended."""
        return self.state == STARTED

    @property
    def holdout_nn_accuracy(self) -> float | None:
        """The accuracy of the last check on held-out training images; None without one."""
        return self.holdout_curve[-1][1] if self.holdout_curve else None


class ComparisonDirectory:
    """The files of a comparison, by name.

    Args:
        path: The directory; nothing is written until a method says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, name: str) -> Path:
        """Return the run directory of a cell."""
        return self.path / "runs" / name

    def outcome_file(self, name: str) -> Path:
        """Return the file that says what became of a cell."""
        return self.path / "cells" / f"{name}.json"

    def outcome(self, name: str) -> Outcome | None:
        """Return what became of a cell; None when it has not been started.

        Raises:
            DistillError: A file that is damaged.
        """
        file = self.outcome_file(name)
        if not file.exists():
            return None
        try:
            return as_dataclass(Outcome, parse_json(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DistillError(
                f"{file} is damaged ({error}); remove it to repeat the run"
            ) from error

    def write(self, name: str, outcome: Outcome) -> None:
        """Keep what became of a cell.

        Raises:
            DistillError: The disk refuses.
        """
        with self._explained():
            write_outcome(self.outcome_file(name), outcome)

    def forget(self, name: str) -> None:
        """Remove a cell's run directory, then what became of it."""
        shutil.rmtree(self.run(name), ignore_errors=True)
        self.outcome_file(name).unlink(missing_ok=True)

    def make(self) -> None:
        """Make the directory.

        Raises:
            DistillError: It cannot be made.
        """
        with self._explained():
            for folder in ("runs", "cells"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write the copy of the grid, or a file of the results.

        Raises:
            DistillError: The disk refuses.
        """
        with self._explained():
            atomic_write(self.path / name, text.encode())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DistillError(
                f"{self.path} cannot be written: {error.strerror or error}; make room or choose "
                "another --output"
            ) from error


def write_outcome(file: Path, outcome: Outcome) -> None:
    """Write what became of a cell; the file is whole or as before."""
    atomic_write(file, (json.dumps(asdict(outcome), indent=1) + "\n").encode())


def remove_checkpoints(run: Path) -> int:
    """Remove what only a run that goes on needs; return the bytes that this freed.

    Args:
        run: A finished run; its weights, numbers, log and configuration stay.
    """
    freed = 0
    for folder in (run / "checkpoints", run / "embeddings"):
        freed += folder_size(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def folder_size(folder: Path) -> int:
    """Return the bytes of all files under a folder; 0 when it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
