"""Says how training goes: spread of embeddings, collapse, waiting for data, a held-out check.

A network that says the same of every image has collapsed: its loss may still be finite and smooth,
and nothing is learned any more. Three numbers show it, of the unit rows u of the last batch:

    spread           sqrt(mean_i |u_i - mean u|^2), in [0, 1]; 0 says the same of every image, 1 has
                     directions that cancel. The root mean square over dimensions of the standard
                     deviation, times sqrt(D).
    effective_rank   exp(entropy of the covariance's eigenvalues, normalized to 1), in [1, D]: in
                     how many directions embeddings differ (Roy and Vetterli, The effective rank,
                     EUSIPCO 2007). At most one less than the rows.
    dead_units       share of dimensions that had one value for all images of each of the last ten
                     passes, such as a ReLU that never opens. Parts of a batch are passes of their
                     own.

Deliberate limits: a training batch of the last step alone, so small batches bound the rank; over
ranks, a dimension that differs between ranks but within none counts as dead.

Shapes: B rows of the batch of all ranks, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill import distributed
from distill.data.sources import TrainingImages
from distill.distributed import all_gather_variable, row_counts
from distill.embeddings.embed import DatasetEmbedder
from distill.embeddings.search import require_labels
from distill.errors import DistillError
from distill.evaluation.nn import nn_accuracy
from distill.models.networks import EmbeddingNetwork

logger = logging.getLogger(__name__)

DEAD_AFTER = 10  # passes
MAX_ROWS = 256  # of the effective rank, whose price is their cube
_SAME = 1e-6  # of the largest value: rounding is no difference


class EmbeddingSpread:
    """Looks at what a network returns in training; it neither runs it nor changes anything.

    A context manager: on leaving, the network is as before. Passes without gradient or in
    evaluation mode are not looked at.

    Args:
        network: Returns embeddings (b, D) of this rank's images.
    """

    def __init__(self, network: nn.Module) -> None:
        self._last: Tensor | None = None
        self._unvaried: Tensor | None = None
        self._num_passes = 0
        self._hook = network.register_forward_hook(self._see)

    def __enter__(self) -> EmbeddingSpread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def _see(self, network: nn.Module, _: Any, embeddings: Tensor) -> None:
        if network.training and torch.is_grad_enabled():
            self.add(embeddings)

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Look at a batch's embeddings, b x D; b may be 0."""
        self._last = embeddings.detach()
        if self._unvaried is None:
            self._unvaried = torch.zeros(
                embeddings.shape[1], dtype=torch.int64, device=embeddings.device
            )
        self._num_passes += 1
        unvaried = self._unvaried.to(embeddings.device)  # a checkpoint's lies on the CPU
        self._unvaried = (unvaried + 1).masked_fill(_varies(self._last), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return what later numbers depend on, the same on every rank; all call it together."""
        if self._unvaried is None:
            return {}
        unvaried = distributed.all_gather(self._unvaried[None]).amin(0)  # all that `read` uses
        return {"unvaried": unvaried, "num_batches": self._num_passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            self._unvaried, self._num_passes = state["unvaried"], state["num_batches"]

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """Return the three numbers, the same on every rank; all ranks call it together.

        Returns:
            Nothing before two rows were seen, or when they are not finite.
        """
        if self._last is None or self._unvaried is None:
            return {}
        counts = row_counts(len(self._last))
        if sum(counts) < 2:
            return {}
        rows = all_gather_variable(self._last.float(), counts)
        if not rows.isfinite().all():
            return {}
        unit = F.normalize(rows)
        unvaried = distributed.all_gather(self._unvaried[None]).amin(0)
        dead = unvaried >= min(DEAD_AFTER, self._num_passes)
        return {
            "spread": (unit - unit.mean(0)).square().sum(1).mean().sqrt().item(),
            "effective_rank": effective_rank(unit[:MAX_ROWS]),
            "dead_units": dead.float().mean().item(),
        }


def effective_rank(rows: Tensor) -> float:
    """Return exp(entropy) of the normalized eigenvalues of the rows' covariance.

    Args:
        rows: B x D, finite.

    Returns:
        From 1 to min(B - 1, D); 0 where rows do not differ.
    """
    centered = rows.double() - rows.double().mean(0)
    # B x B and D x D have the same eigenvalues but for zeros.
    gram = centered @ centered.T if len(rows) < rows.shape[1] else centered.T @ centered
    eigenvalues = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0)
    total = eigenvalues.sum()
    if total <= len(rows) * _SAME**2:
        return 0.0
    return torch.special.entr(eigenvalues / total).sum().exp().item()


def _varies(rows: Tensor) -> Tensor:
    """Return which dimensions have more than one value, D."""
    if len(rows) == 0:
        return torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    low, high = rows.aminmax(dim=0)
    return high - low > _SAME * torch.maximum(high, -low).amax()


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
    """Warns once that a network collapsed or learns nothing, from the numbers of the log.

    Two signs, either of which is enough: its embeddings lie together (`spread`); after two epochs
    its loss is that of a network which says the same of every image, or higher (`loss_over_chance`,
    which a method adds to its metrics where it knows it). Neither is looked at in the first steps,
    in which AlexNet under AdamW comes down to a spread of 0.03 and recovers. Limit: nothing is
    ended or changed; who trains decides.
    """

    def __init__(self) -> None:
        self.has_warned = False

    def look(self, step: int, values: Mapping[str, float], *, num_epochs: int = 0) -> str | None:
        """Return the warning, the first time that there is reason for one.

        Args:
            step: Optimizer steps taken.
            values: Numbers of a line of the log.
            num_epochs: Epochs finished, at the end of one; 0 within an epoch.
        """
        if self.has_warned or step < FIRST_STEPS:
            return None
        reason = _lies_together(values) or _learns_nothing(values, num_epochs)
        if reason is None:
            return None
        self.has_warned = True
        return f"at step {step} {reason}; {REMEDIES}"


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
        f"the network has learned nothing: after {num_epochs} epochs its loss is {share:.2f} times "
        "that of a network which says the same of every image"
    )


LARGEST_SHARE = 0.1
LEAST_SECONDS = 30.0  # of an epoch; shorter waits are the start of the loaders


class DataWatch:
    """Warns once when training waits for its images, and says what to try."""

    def __init__(self) -> None:
        self.has_warned = False

    def look(self, share: float, seconds: float, *, num_workers: int) -> str | None:
        """Return the advice, the first time that there is reason for it.

        Args:
            share: Of the epoch's time that went to waiting, in [0, 1].
            seconds: The same in seconds.
            num_workers: Processes that load images.
        """
        if self.has_warned or share <= LARGEST_SHARE or seconds < LEAST_SECONDS:
            return None
        self.has_warned = True
        return (
            f"{share:.0%} of the epoch went to waiting for images: raise --num-workers (now "
            f"{num_workers}) as far as there are cores, keep the images on a local disk, or store "
            "them no larger than they are looked at"
        )


MAX_INDEXED = 10_000
MAX_QUERIES = 2_000


class HoldoutCheck:
    """The nearest-neighbor accuracy of training images that are held out, between epochs.

    A falling loss alone does not say that the student learns what its user wants, and validation
    images must not choose anything. Held-out images are therefore looked up among the images that
    are trained on; both sides are capped, so that the check stays short on large sets.

    Args:
        embedder: Data and device; its training images are used, never its validation images.
        images: Which are trained on and which are held out.
        every: Epochs between checks; 0 for none. The last epoch has one in any case.
        num_epochs: Of the run.
        seed: Picks the images when there are more than the caps.
    """

    def __init__(
        self,
        embedder: DatasetEmbedder,
        images: TrainingImages,
        *,
        every: int,
        num_epochs: int,
        seed: int,
    ) -> None:
        self.embedder, self.every, self.num_epochs = embedder, every, num_epochs
        self.indexed = _sample(images.trained, MAX_INDEXED, seed)
        self.queries = _sample(images.held_out, MAX_QUERIES, seed)
        self.unavailable_reason = self._unavailable_reason()
        if self.unavailable_reason is not None:
            logger.info(f"no nearest-neighbor check between epochs: {self.unavailable_reason}")

    def __call__(self, network: EmbeddingNetwork, epoch: int) -> dict[str, float]:
        """Return the accuracy after an epoch (from 1) that has a check; nothing after others."""
        is_due = epoch == self.num_epochs or (self.every and epoch % self.every == 0)
        if self.unavailable_reason is not None or not is_due:
            return {}
        images, both = self.embedder.data.train, np.concatenate([self.indexed, self.queries])
        rows = self.embedder.embed(network, images, both, "held-out check")
        is_query = np.isin(rows.index, self.queries)
        accuracy = nn_accuracy(
            rows.features[~is_query],
            rows.labels[~is_query],
            rows.features[is_query],
            rows.labels[is_query],
        )
        return {"holdout_nn_accuracy": accuracy}

    def _unavailable_reason(self) -> str | None:
        labels = self.embedder.data.train.labels
        if self.every == 0:
            return "it is off (--nn-every 0)"
        if len(self.queries) == 0:
            return "no image is held out (--holdout)"
        try:
            require_labels(None if labels is None else labels[self.indexed], what="the images")
        except DistillError as error:
            return str(error)
        return None


def _sample(index: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, size=most, replace=False))
