"""Says once when training waits for its images, and what to try."""

from __future__ import annotations

LARGEST_SHARE = 0.1
LEAST_SECONDS = 30.0  # of an epoch; shorter waits are the start of the loaders


class DataWatch:
    """Looks at what an epoch waited and speaks once."""

    def __init__(self) -> None:
        self.has_spoken = False

    def look(self, share: float, seconds: float, *, num_workers: int) -> str | None:
        """Return the advice, the first time that there is reason for it.

        Args:
            share: Of the epoch's time that went to waiting, in [0, 1].
            seconds: The same in seconds.
            num_workers: Processes that load images.
        """
        if self.has_spoken or share <= LARGEST_SHARE or seconds < LEAST_SECONDS:
            return None
        self.has_spoken = True
        return (
            f"{share:.0%} of the epoch went to waiting for images: raise --num-workers (now "
            f"{num_workers}) as far as there are cores, keep the images on a local disk, or store "
            "them no larger than they are looked at"
        )
