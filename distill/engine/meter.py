"""Loss, speed and waiting time of some batches, averaged for a line of the log."""

from __future__ import annotations

import time
from typing import Any

_COUNTED = ("loss_sum", "num_losses", "num_images", "waited", "seconds")


class Meter:
    """Loss, speed and share of time spent waiting for data since it was last read."""

    def __init__(self) -> None:
        self.restart()

    def state_dict(self) -> dict[str, float]:
        """Return what was counted since it was last read."""
        counted = (self.loss_sum, self.num_losses, self.num_images, self.waited)
        return dict(zip(_COUNTED, (*counted, time.perf_counter() - self.started), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was called."""
        self.loss_sum, self.num_losses, self.num_images, self.waited, seconds = (
            state[name] for name in _COUNTED
        )
        self.started = time.perf_counter() - seconds

    def restart(self) -> None:
        """Forget what was counted."""
        self.loss_sum, self.num_losses, self.num_images = 0.0, 0, 0
        self.waited, self.started = 0.0, time.perf_counter()

    def add(self, loss: float | None, *, num_images: int, waited: float) -> None:
        """Count a batch of all ranks; `loss` is None when it gave none, `waited` in seconds."""
        self.loss_sum += loss or 0.0
        self.num_losses += loss is not None
        self.num_images += num_images
        self.waited += waited

    def read(self) -> dict[str, float]:
        """Return the averages and start anew."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "images_per_second": round(self.num_images / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
        }
        if self.num_losses:
            values["loss"] = self.loss_sum / self.num_losses
        self.restart()
        return values
