"""The check between epochs: nearest-neighbour accuracy on training images that are held out.

A falling loss alone does not say that the student learns what its user wants, and validation images
must not choose anything. Held-out images are therefore looked up among the images that are trained
on; both sides are capped, so that the check stays short on large sets.
"""

from __future__ import annotations

import numpy as np

from distill.errors import DistillError
from distill.evaluation.nearest_neighbour import nn_accuracy, require_labels
from distill.jobs.evaluator import Evaluator
from distill.networks import EmbeddingNetwork

MAX_INDEXED = 10_000
MAX_QUERIES = 2_000


class HoldoutMonitor:
    """Measures a network on held-out training images.

    Args:
        evaluator: The setting; its training images are used, never its validation images.
        trained: Indices of the images that are trained on.
        held_out: Indices of those that are not.
        seed: Picks the images when there are more than the caps.
    """

    def __init__(
        self, evaluator: Evaluator, trained: np.ndarray, held_out: np.ndarray, *, seed: int
    ) -> None:
        self.evaluator = evaluator
        self.indexed = _sample(trained, MAX_INDEXED, seed)
        self.queries = _sample(held_out, MAX_QUERIES, seed)

    def why_not(self) -> str | None:
        """Return why the check cannot be made, None when it can."""
        labels = self.evaluator.data.train.labels
        if len(self.queries) == 0:
            return "no image is held out (--holdout)"
        try:
            require_labels(None if labels is None else labels[self.indexed], what="the images")
        except DistillError as error:
            return str(error)
        return None

    def accuracy(self, network: EmbeddingNetwork) -> float:
        """Return the 1-nearest-neighbour accuracy of the held-out images."""
        images, both = self.evaluator.data.train, np.concatenate([self.indexed, self.queries])
        found = self.evaluator.embed(network, images, both, "held-out check")
        is_query = np.isin(found.index, self.queries)
        return nn_accuracy(
            found.features[~is_query],
            found.labels[~is_query],
            found.features[is_query],
            found.labels[is_query],
        )


def _sample(index: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, size=most, replace=False))
