"""Ends a run cleanly on Ctrl-C or SIGTERM: the step in progress is finished, then a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `received`; a SIGINT then interrupts.

    A second SIGTERM does not: a launcher passes on what a cluster has sent to all processes anyway.
    Outside the main thread signals cannot be caught; `received` stays None there.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
