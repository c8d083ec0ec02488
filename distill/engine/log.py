"""Where a run reports for programs: log.jsonl and TensorBoard.

With several processes only the first reports.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distill import distributed


class RunLog:
    """Writes the same numbers to log.jsonl and to TensorBoard.

    Args:
        run: The run directory.
        step: Optimizer steps already taken; later lines of an earlier sitting are removed, so that
            the log has neither gaps nor doubles after `--resume`.
    """

    def __init__(self, run: Path, *, step: int = 0) -> None:
        self.is_open = distributed.is_main()
        if not self.is_open:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "log.jsonl"
        _keep_until(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; numbers go to TensorBoard too."""
        if not self.is_open:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both to the disk."""
        if not self.is_open:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        self._tensorboard.close()


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # the last line of a run that was killed
            break
    path.write_text("".join(kept), encoding="utf-8")
