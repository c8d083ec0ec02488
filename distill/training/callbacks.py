"""What a run tells while it trains: a person's own code, log.jsonl and TensorBoard listen here."""

from __future__ import annotations

from collections.abc import Mapping
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
        """Hear of an optimizer step that is logged (`log_every`).

        Args:
            step: Steps taken, from 1.
            metrics: Numbers by name, as in log.jsonl.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hear of a check on held-out images between epochs (`nn_every`)."""

    def on_epoch(self, epoch: int, step: int) -> None:
        """Hear of the end of an epoch, counted from 1."""

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        """Hear of the end of a complete run, with what metrics.json holds."""
