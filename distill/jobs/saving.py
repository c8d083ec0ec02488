"""Saves a run while it trains; a disk that refuses is told of, and stops it only by choice."""

from __future__ import annotations

from typing import Any

from distill.config import RunOptions
from distill.engine.checkpoint import (
    About,
    CheckpointNotWrittenError,
    Progress,
    checkpoint_bytes,
    checkpoints,
    save_checkpoint,
)
from distill.engine.loop import Learner
from distill.engine.run_directory import RunDirectory
from distill.jobs.configure import identity
from distill.terminal import say


class Saver:
    """Writes checkpoints, says how large they are and what happens when they cannot be.

    Args:
        config: Of the run.
        run: Its directory.
        learner: What is saved.
    """

    def __init__(self, config: Any, run: RunDirectory, learner: Learner) -> None:
        self._options: RunOptions = config.run
        self._identity = identity(config)
        self._run, self._learner = run, learner
        self._has_said_size = False

    def save(self, progress: Progress, score: float | None) -> None:
        """Write a checkpoint; every rank calls it.

        Args:
            progress: Where the run stands.
            score: Accuracy on held-out training images, where it was just measured.

        Raises:
            CheckpointNotWrittenError: The disk refuses it, and the run is to stop then.
        """
        about = About(self._identity, score, self._options.keep_every)
        state, shard = self._learner.state_dict(), self._learner.objective.shard()
        try:
            path = save_checkpoint(self._run.checkpoints, progress, state, shard, about)
        except CheckpointNotWrittenError as error:
            self._complain(progress, error)
            return
        if not self._has_said_size:
            say(f"a checkpoint takes {checkpoint_bytes(path) / 2**20:.1f} MiB in {path.parent}")
            self._has_said_size = True

    def _complain(self, progress: Progress, error: CheckpointNotWrittenError) -> None:
        found = checkpoints(self._run.checkpoints)
        last = f"the last one, {found[-1].name}, is intact" if found else "there is none before it"
        message = f"after step {progress.step} {error}; {last}"
        if self._options.on_failed_checkpoint == "continue":
            say(f"warning: {message}; training goes on. Make room before the next one is due")
            return
        raise CheckpointNotWrittenError(
            f"{message}. Make room, then go on with --output {self._run.path} --resume"
        ) from error
