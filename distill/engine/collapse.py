"""Says once, in words, that a network collapsed or learns nothing, from the numbers of the log.

Two signs, either of which is enough:

- its embeddings lie together (`spread`, see `distill.engine.spread`);
- after two epochs its loss is that of a network which says the same of every image, or higher
  (`loss_over_chance`, which an objective adds to its metrics where it knows it).

Neither is looked at in the first steps, in which AlexNet under AdamW comes down to a spread of 0.03
and recovers. Limit: nothing is ended or changed; who trains decides.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_STEPS = 50
FIRST_EPOCHS = 2
# Of the students AlexNet begins lowest, at 0.15; ResNet-18 at 0.49. With a temperature of 0.04 and
# anchors that lie together as well, 0.02^2 / 0.04 = 0.01 nats are all that is left to be told.
LEAST_SPREAD = 0.02
LARGEST_LOSS_OVER_CHANCE = 0.99

REMEDIES = (
    "use --optimizer muon, a lower --learning-rate, a longer --warmup-epochs, --variant one-queue "
    "or a student with BatchNorm"
)


class CollapseWatch:
    """Looks at lines of the log and speaks once."""

    def __init__(self) -> None:
        self.has_spoken = False

    def look(self, step: int, values: Mapping[str, float], *, num_epochs: int = 0) -> str | None:
        """Return the warning, the first time that there is reason for one.

        Args:
            step: Optimizer steps taken.
            values: Numbers of a line of the log.
            num_epochs: Epochs finished, at the end of one; 0 within an epoch.
        """
        if self.has_spoken or step < FIRST_STEPS:
            return None
        reason = _lies_together(values) or _learns_nothing(values, num_epochs)
        if reason is None:
            return None
        self.has_spoken = True
        return f"warning: at step {step} {reason}; {REMEDIES}"


def _lies_together(values: Mapping[str, float]) -> str | None:
    spread = values.get("spread")
    if spread is None or spread >= LEAST_SPREAD:
        return None
    return (
        f"the network has collapsed: it says nearly the same of every image (spread {spread:.2g} "
        f"of at most 1, {values.get('dead_units', 0.0):.0%} of its units are dead)"
    )


def _learns_nothing(values: Mapping[str, float], num_epochs: int) -> str | None:
    share = values.get("loss_over_chance")
    if num_epochs < FIRST_EPOCHS or share is None or share <= LARGEST_LOSS_OVER_CHANCE:
        return None
    return (
        f"the network has learnt nothing: after {num_epochs} epochs its loss is {share:.2f} times "
        "that of a network which says the same of every image"
    )
