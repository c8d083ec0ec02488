"""Linear evaluation: how well one linear layer on frozen embeddings tells classes apart.

Protocol (CompRess, NeurIPS 2020): rows of unit norm, standardized with the training rows' mean and
variance (`distill.evaluation.standardize`), one linear layer, SGD (`distill.evaluation.
linear_heads`). What counts is the head after the last epoch: the published program names the best
epoch on the validation images, which choose nothing here. A sweep trains a head for each setting
at once on nine tenths of the training rows, chooses on the rest, and trains the chosen setting
anew on all rows beside the published one.

Shapes: N training rows, M validation rows, D width, C classes, G settings of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.class_scores import ClassScores, class_scores
from distill.evaluation.label_subsets import held_out_rows
from distill.evaluation.linear_heads import (
    PUBLISHED_SCHEDULE,
    PUBLISHED_SETTING,
    HeadBatch,
    HeadSetting,
    LinearHeads,
    LinearSchedule,
    initial_heads,
    train_heads,
)
from distill.evaluation.nearest_neighbour import require_labels, require_same_width
from distill.evaluation.row_blocks import Rows
from distill.evaluation.standardize import (
    StandardizedRows,
    Standardizer,
    fit_standardizer,
    require_finite,
)

MakeBatches = Callable[[np.ndarray, Standardizer], Iterator[HeadBatch]]
"""From training rows and their statistics to all batches of all epochs."""

_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings of training and validation images with their classes.

    Attributes:
        train_features: (N, D), any scale and floating dtype; may lie on the disk.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), likewise.
        val_labels: (M,) classes, at least 0.

    Raises:
        DistillError: See `require_labels`; embeddings that are not finite or of different widths.
    """

    train_features: Rows
    train_labels: np.ndarray
    val_features: Rows
    val_labels: np.ndarray

    def __post_init__(self) -> None:
        require_labels(self.train_labels, what="the training images")
        require_labels(self.val_labels, what="the validation images", min_classes=1)
        require_same_width(self.train_features, self.val_features)
        require_finite(self.train_features)
        require_finite(self.val_features)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(max(self.train_labels.max(), self.val_labels.max())) + 1

    def rows(self, chosen: np.ndarray | None) -> np.ndarray:
        """Return the training rows to learn from, all when none were chosen.

        Raises:
            DistillError: They are of one class.
        """
        rows = np.arange(len(self.train_labels)) if chosen is None else chosen
        require_labels(self.train_labels[rows], what="the labelled training images")
        return rows


@dataclass(frozen=True)
class LinearResult:
    """What linear heads achieve on the validation images.

    Attributes:
        published: Scores of the published setting.
        best: Scores of the setting that the sweep chose; None without a sweep.
        best_setting: That setting.
        held_out: Accuracy of every setting of the sweep on held-out training rows, by setting.
    """

    published: ClassScores
    best: ClassScores | None
    best_setting: HeadSetting | None
    held_out: dict[HeadSetting, float]


def linear_evaluation(
    data: LabelledEmbeddings,
    *,
    device: torch.device,
    rows: np.ndarray | None = None,
    sweep: Sequence[HeadSetting] = (),
    seed: int = 0,
    schedule: LinearSchedule = PUBLISHED_SCHEDULE,
    make_batches: MakeBatches | None = None,
) -> LinearResult:
    """Train linear heads on training rows and score them on the validation rows.

    Args:
        data: The embeddings.
        device: Where heads are trained.
        rows: The training rows to learn from; None: all.
        sweep: Settings to choose from besides the published one; none: no sweep.
        seed: Of the heads' start, of the order of rows and of what the sweep holds out; from 0.
        schedule: Epochs, batches, decay.
        make_batches: Where batches come from; None: from `data.train_features`.

    Raises:
        DistillError: Rows of one class, or a sweep over rows that cannot be split.
    """
    rows = data.rows(rows)
    probe = _Probe(data, device, seed, schedule, make_batches)
    settings, held_out = [PUBLISHED_SETTING], {}
    if sweep:
        candidates = list(dict.fromkeys([PUBLISHED_SETTING, *sweep]))
        scores = probe.scores_held_out(rows, candidates)
        best = max(range(len(scores)), key=lambda g: (scores[g].accuracy, -scores[g].loss))
        settings.append(candidates[best])
        held_out = {
            setting: score.accuracy for setting, score in zip(candidates, scores, strict=True)
        }
    heads, standardizer = probe.train(rows, settings)
    val = probe.standardized(data.val_features, np.arange(len(data.val_labels)), standardizer)
    found = score_heads(heads, val, data.val_labels, num_classes=data.num_classes)
    if not sweep:
        return LinearResult(found[0], best=None, best_setting=None, held_out=held_out)
    return LinearResult(found[0], found[1], settings[1], held_out)


@dataclass(frozen=True)
class _Probe:
    """The parts of a linear evaluation that its passes share; attributes as its arguments."""

    data: LabelledEmbeddings
    device: torch.device
    seed: int
    schedule: LinearSchedule
    make_batches: MakeBatches | None

    def scores_held_out(
        self, rows: np.ndarray, settings: Sequence[HeadSetting]
    ) -> list[ClassScores]:
        """Train on a part of the rows and score on the rest."""
        labels = self.data.train_labels[rows]
        fitted, held_out = held_out_rows(labels, seed=self.seed)
        heads, standardizer = self.train(rows[fitted], settings)
        standardized = self.standardized(self.data.train_features, rows[held_out], standardizer)
        classes = self.data.num_classes
        return score_heads(heads, standardized, labels[held_out], num_classes=classes)

    def train(
        self, rows: np.ndarray, settings: Sequence[HeadSetting]
    ) -> tuple[LinearHeads, Standardizer]:
        """Train a head with each setting."""
        features = self.data.train_features
        standardizer = fit_standardizer(features, rows, device=self.device)
        heads = initial_heads(
            len(settings),
            num_classes=self.data.num_classes,
            dim=features.shape[1],
            seed=self.seed,
            device=self.device,
        )
        batches = (self.make_batches or self._batches)(rows, standardizer)
        return train_heads(heads, settings, batches, self.schedule), standardizer

    def standardized(
        self, features: Rows, rows: np.ndarray, standardizer: Standardizer
    ) -> StandardizedRows:
        return StandardizedRows(features, rows, standardizer, device=self.device)

    def _batches(self, rows: np.ndarray, standardizer: Standardizer) -> Iterator[HeadBatch]:
        """Go through the rows in a new order every epoch, which follows from the seed alone."""
        standardized = self.standardized(self.data.train_features, rows, standardizer)
        labels = self.data.train_labels[rows]
        size = self.schedule.batch_size
        for epoch in range(self.schedule.num_epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(rows))
            for start in range(0, len(rows), size):
                places = np.sort(order[start : start + size])  # reads a memory map forwards
                yield HeadBatch(epoch, standardized(places), self._on_device(labels[places]))

    def _on_device(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels.astype(np.int64)).to(self.device)


def score_heads(
    heads: LinearHeads, rows: StandardizedRows, labels: np.ndarray, *, num_classes: int
) -> list[ClassScores]:
    """Score heads on standardized rows with their labels, a part of the rows at a time."""
    at_once = max(1, _LOGITS_AT_ONCE // heads.bias.numel())

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(rows), at_once):
            places = np.arange(start, min(start + at_once, len(rows)))
            target = torch.from_numpy(labels[places].astype(np.int64)).to(heads.bias.device)
            yield heads.logits(rows(places)), target

    return class_scores(batches(), num_classes=num_classes)
