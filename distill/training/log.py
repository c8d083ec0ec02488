"""Where a run reports for programs: log.jsonl and TensorBoard.

A log that has grown beyond 64 MiB becomes log-0001.jsonl, and a new one is begun; `log_parts` gives
all of them in order. With several processes only the first reports. A disk that refuses lines does
not end the run: they wait in memory, and are written when it takes them again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import distributed
from distill.training.callbacks import Callback

logger = logging.getLogger(__name__)

LOG = "log.jsonl"
MAX_BYTES = 64 * 2**20


def log_parts(run: Path) -> list[Path]:
    """Return the files of a run's log, oldest first."""
    current = run / LOG
    return [*sorted(run.glob("log-[0-9]*.jsonl")), *([current] if current.exists() else [])]


class RunLog(Callback):
    """Writes the same numbers to log.jsonl and to TensorBoard.

    Args:
        run: The run directory.
        step: Optimizer steps already taken; TensorBoard drops later ones of an earlier sitting.
        num_bytes: Length of the log at that moment, all parts; what an earlier sitting wrote after
            it is removed, so that the log has neither gaps nor doubles after `--resume`.
    """

    def __init__(self, run: Path, *, step: int = 0, num_bytes: int = 0) -> None:
        self.is_open = distributed.is_main()
        if not self.is_open:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / LOG
        self._num_bytes = _cut(run, num_bytes)
        self._file = self.path.open("ab")
        self._waiting = b""
        self._print_thread_error = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._tensorboard: SummaryWriter | None = SummaryWriter(
            str(run / "tensorboard"), purge_step=step + 1
        )

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        self.write(step, metrics)

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line, marked as an epoch's."""
        self.write(step, {"epoch": epoch, "event": "epoch", **metrics})

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line; numbers go to TensorBoard too."""
        if not self.is_open:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        self._num_bytes += len(line.encode())
        is_first = not self._waiting
        self._waiting += line.encode()
        try:
            self._write_waiting()
        except OSError as error:
            if is_first:
                logger.warning(f"{self.path} cannot be written ({error.strerror}); lines wait")
        self._write_scalars(step, values)

    def sync(self) -> int:
        """Flush the lines to the disk; return the length of the log, waiting lines included."""
        if not self.is_open:
            return 0
        try:
            self._write_waiting()
            os.fsync(self._file.fileno())
        except OSError:
            pass  # which `write` has said
        return self._num_bytes

    def close(self) -> None:
        """Flush both to the disk, as far as it takes them."""
        if not self.is_open:
            return
        self.sync()
        threading.excepthook = self._print_thread_error
        try:
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
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

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Leave it to the next `write` to say that the disk refused TensorBoard's thread."""
        is_its_own = type(error.thread).__module__.partition(".")[0] == "tensorboard"
        if not (is_its_own and isinstance(error.exc_value, OSError)):
            self._print_thread_error(error)

    def _write_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        if self._tensorboard is None:
            return
        try:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._tensorboard.add_scalar(name, value, step)
        except OSError as error:  # its own thread met it before
            logger.warning(f"TensorBoard's files cannot be written ({error.strerror}) and end here")
            self._tensorboard = None


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
