"""Who is told what a run does: a person's own code, log.jsonl and TensorBoard.

A log that has grown beyond 64 MiB becomes log-0001.jsonl, and a new one is begun; `log_parts` gives
all of them in order. A disk that refuses lines does not end the run: they wait in memory, and are
written when it takes them again. Under several ranks callbacks exist on the first alone.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.training.run import RunResult

logger = logging.getLogger(__name__)

LOG = "log.jsonl"
MAX_BYTES = 64 * 2**20


class Callback:
    """Is told of steps, epochs, evaluations and the end of a run, on the first rank.

    Override what you need and pass `callbacks=[...]` to `distill.train` or `distill.pretrain`. An
    exception ends the run; the last checkpoint is intact. A run that is continued tells of the
    steps that it takes itself.

    Example:
        >>> class Losses(Callback):
        ...     def __init__(self):
        ...         self.losses = []
        ...
        ...     def on_step(self, step, metrics):
        ...         self.losses.append(metrics["loss"])
        >>> losses = Losses()
        >>> losses.on_step(1, {"loss": 0.5})
        >>> losses.losses
        [0.5]
    """

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hear of an optimizer step that is logged (`log_every`).

        Args:
            step: Optimizer steps taken, from 1.
            metrics: As a line of log.jsonl.
        """

    def on_skip(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hear of a batch that gave no step: a queue fills, or too few images could be read."""

    def on_epoch(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Hear of the end of an epoch.

        Args:
            epoch: Epochs that are complete, from 1.
            metrics: `step`, means over the epoch, and `holdout_nn_accuracy` where it was checked
                (`nn_every`).
        """

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Hear of numbers that metrics.json receives, before and after training."""

    def on_end(self, result: RunResult) -> None:
        """Hear of the end of a complete run."""


class CallbackList(Callback):
    """Tells several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of a step."""
        for callback in self.callbacks:
            callback.on_step(step, metrics)

    def on_skip(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of a batch without a step."""
        for callback in self.callbacks:
            callback.on_skip(step, metrics)

    def on_epoch(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Tell of an epoch."""
        for callback in self.callbacks:
            callback.on_epoch(epoch, metrics)

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Tell of numbers."""
        for callback in self.callbacks:
            callback.on_evaluation(metrics)

    def on_end(self, result: RunResult) -> None:
        """Tell of the end."""
        for callback in self.callbacks:
            callback.on_end(result)


class _Lines(Callback):
    """Writes what it hears, line by line."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line."""
        raise NotImplementedError

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        self.write(step, metrics)

    def on_skip(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        self.write(step, metrics)

    def on_epoch(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Write one line, marked as an epoch's."""
        self.write(metrics["step"], {"epoch": epoch, "event": "epoch", **metrics})


def log_parts(run: Path) -> list[Path]:
    """Return the files of a run's log, oldest first."""
    current = run / LOG
    return [*sorted(run.glob("log-[0-9]*.jsonl")), *([current] if current.exists() else [])]


class RunLog(_Lines):
    """Writes log.jsonl.

    Args:
        run: The run directory.
        num_bytes: Length of the log at the checkpoint that the run goes on from, all parts; what
            was written after it is removed, so that the log has neither gaps nor doubles after
            `--resume`.
    """

    def __init__(self, run: Path, *, num_bytes: int = 0) -> None:
        self.path = run / LOG
        self._num_bytes = _cut(run, num_bytes)
        self._file = self.path.open("ab")
        self._waiting = b""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line."""
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._num_bytes += len(line)
        is_first = not self._waiting
        self._waiting += line
        try:
            self._write_waiting()
        except OSError as error:
            if is_first:
                logger.warning(f"{self.path} cannot be written ({error.strerror}); lines wait")

    def sync(self) -> int:
        """Flush the lines to the disk; return the length of the log, waiting lines included."""
        try:
            self._write_waiting()
            os.fsync(self._file.fileno())
        except OSError:
            pass  # which `write` has said
        return self._num_bytes

    def close(self) -> None:
        """Flush the lines to the disk, as far as it takes them."""
        self.sync()
        try:
            self._file.close()
        except OSError as error:
            logger.warning(f"the last lines of {self.path} are lost ({error.strerror})")

    def _write_waiting(self) -> None:
        """Write what waits; a line that the disk took in part goes on where it was cut."""
        while self._waiting:
            written = os.write(self._file.fileno(), self._waiting)
            self._waiting = self._waiting[written:]
        if os.fstat(self._file.fileno()).st_size >= MAX_BYTES:
            os.fsync(self._file.fileno())
            number = len(log_parts(self.path.parent))
            self.path.rename(self.path.with_name(f"log-{number:04d}.jsonl"))
            self._file.close()
            self._file = self.path.open("ab")


class TensorBoardLog(_Lines):
    """Writes the same numbers for TensorBoard; it gives up when the disk refuses them.

    Args:
        run: The run directory.
        step: Optimizer steps already taken; TensorBoard drops later ones of an earlier start.
    """

    def __init__(self, run: Path, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._print_thread_error = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._writer: SummaryWriter | None = SummaryWriter(
            str(run / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers of a line."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # its own thread met it before
            logger.warning(f"TensorBoard's files cannot be written ({error.strerror}) and end here")
            self._writer = None

    def close(self) -> None:
        """Flush to the disk, as far as it takes them."""
        threading.excepthook = self._print_thread_error
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            logger.warning(f"TensorBoard's last numbers are lost ({error.strerror})")

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Leave it to the next `write` to say that the disk refused TensorBoard's thread."""
        is_its_own = type(error.thread).__module__.partition(".")[0] == "tensorboard"
        if not (is_its_own and isinstance(error.exc_value, OSError)):
            self._print_thread_error(error)


def _cut(run: Path, num_bytes: int) -> int:
    """Remove what a log has beyond a length; return the length that is left."""
    left, parts = num_bytes, log_parts(run)
    for place, part in enumerate(parts):
        size = part.stat().st_size
        if size <= left:
            left -= size
            continue
        for later in parts[place + 1 :]:
            later.unlink()
        os.truncate(part, left)
        part.replace(run / LOG)
        return num_bytes
    return num_bytes - left
