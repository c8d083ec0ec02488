"""Scores of classifiers on labelled rows: top-1, top-5, accuracy of each class, cross-entropy.

Shapes: B rows of a batch, G classifiers, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_TOP = 5


@dataclass(frozen=True)
class ClassScores:
    """What a classifier achieves on some images.

    Attributes:
        accuracy: Share of images whose class it names, as a fraction of 1.
        top5_accuracy: Share whose class is among its first five; None with five classes or fewer,
            where it could not miss.
        per_class: (C,) float64 accuracy on the images of each class, NaN for a class without any.
        loss: Mean cross-entropy in nats; infinite for weights that are not finite.
    """

    accuracy: float
    top5_accuracy: float | None
    per_class: np.ndarray
    loss: float


@torch.no_grad()
def class_scores(
    batches: Iterable[tuple[Tensor, Tensor]], *, num_classes: int
) -> list[ClassScores]:
    """Score G classifiers.

    Args:
        batches: At least one pair of logits (B, G, C) and labels (B,) int64, 0..C-1.
        num_classes: C.

    Returns:
        G scores.
    """
    hits, top_hits, losses, labels = [], [], [], []
    for logits, label in batches:
        hit, top_hit, loss = _counted(logits.float(), label)
        hits.append(hit.cpu().numpy())
        top_hits.append(top_hit.cpu().numpy())
        losses.append(loss.double().cpu().numpy())
        labels.append(label.cpu().numpy())
    found = zip(*(np.concatenate(parts).T for parts in (hits, top_hits, losses)), strict=True)
    classes = np.concatenate(labels)
    return [
        _scores(hit, top_hit, float(loss.mean()), classes, num_classes)
        for hit, top_hit, loss in found
    ]


def _counted(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, G) hits, hits among five, and losses; what is not finite never hits."""
    finite = logits.isfinite().all(dim=2)
    logits = logits.nan_to_num(0.0, 0.0, 0.0)
    target = label[:, None].expand(logits.shape[:2])
    hit = (logits.argmax(dim=2) == target) & finite
    first = logits.topk(min(_TOP, logits.shape[2]), dim=2).indices
    top_hit = (first == target[..., None]).any(dim=2) & finite
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return hit, top_hit, loss.view_as(finite).masked_fill(~finite, torch.inf)


def _scores(
    hit: np.ndarray, top_hit: np.ndarray, loss: float, labels: np.ndarray, num_classes: int
) -> ClassScores:
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=hit, minlength=num_classes)
    per_class = np.full(num_classes, np.nan)
    np.divide(hits, images, out=per_class, where=images > 0)
    top5 = float(top_hit.mean()) if num_classes > _TOP else None
    return ClassScores(float(hit.mean()), top5, per_class, loss)
