"""What tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.training import loop


@pytest.fixture
def stop_after() -> Callable[[pytest.MonkeyPatch, int], None]:
    """Return a function that lets the loop see a SIGTERM after a number of batches."""

    def patch(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
        counter = {"left": batches}

        class Stop(loop.StopRequest):
            @property
            def received(self):
                counter["left"] -= 1
                return "SIGTERM" if counter["left"] <= 0 else None

            @received.setter
            def received(self, value):
                pass

        monkeypatch.setattr(loop, "StopRequest", Stop)

    return patch
