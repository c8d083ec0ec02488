"""Who is told what a run does: a person's own code, log.jsonl and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
        """Hear of a step that is logged (`log_every`).

        Args:
            step: Optimizer steps taken, from 1.
            metrics: As a line of log.jsonl; one that says `event` was no optimizer step.
        """

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Hear of the end of an epoch.

        Args:
            epoch: Epochs that are complete, from 1.
            step: Optimizer steps taken.
            metrics: Means over the epoch; `holdout_nn_accuracy` where it was checked (`nn_every`).
        """

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Hear of numbers that metrics.json receives, before and after training."""

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        """Hear of the end of a complete run, with all that metrics.json holds."""


class CallbackList(Callback):
    """Tells several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of a step."""
        for callback in self.callbacks:
            callback.on_step(step, metrics)

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of an epoch."""
        for callback in self.callbacks:
            callback.on_epoch(epoch, step, metrics)

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Tell of numbers."""
        for callback in self.callbacks:
            callback.on_evaluation(metrics)

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        """Tell of the end."""
        for callback in self.callbacks:
            callback.on_end(metrics)
