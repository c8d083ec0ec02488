"""Refuses embeddings and labels that a measure would mean nothing with, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.errors import DistillError
from distill.evaluation.row_blocks import Rows

_MAX_SEED = 2**31 - 1  # FAISS keeps seeds in a C int


def require_labels(labels: np.ndarray | None, *, what: str, min_classes: int = 2) -> None:
    """Refuse labels that an accuracy would mean nothing with.

    Raises:
        DistillError: No labels, some missing (-1), or fewer classes than `min_classes`.
    """
    num_missing = 0 if labels is None else int((labels < 0).sum())
    if labels is None or num_missing == len(labels):
        raise DistillError(
            f"{what} have no labels, which an accuracy needs; put them into one folder per class "
            "under train/ and val/"
        )
    if num_missing:
        raise DistillError(
            f"{num_missing} of {len(labels)} labels of {what} are missing, an accuracy needs all; "
            "put every image into the folder of its class or leave it out"
        )
    num_classes = len(np.unique(labels))
    if num_classes < min_classes:
        raise DistillError(
            f"{what} are of {num_classes} class, an accuracy needs {min_classes} or more; add a "
            "folder per class"
        )


def require_same_width(train_features: Rows, val_features: Rows) -> None:
    """Refuse embeddings that cannot be compared with each other.

    Raises:
        DistillError: When their widths differ.
    """
    widths = [features.shape[1] for features in (train_features, val_features)]
    if widths[0] != widths[1]:
        raise DistillError(
            f"the training embeddings are {widths[0]} wide and the validation embeddings "
            f"{widths[1]}; embed both with the same network"
        )


def require_label_each(features: Rows, labels: np.ndarray, *, what: str) -> None:
    """Refuse labels that are not one per embedding.

    Raises:
        DistillError: When there are more or fewer labels than embeddings.
    """
    if len(features) != len(labels):
        raise DistillError(
            f"there are {len(features)} embeddings and {len(labels)} labels of {what}, an accuracy "
            "needs one label for each; take both from the same pass over the same images"
        )


def require_splits(
    train_features: Rows, train_labels: np.ndarray, val_features: Rows, val_labels: np.ndarray
) -> None:
    """Refuse training and validation images that no accuracy can be measured with.

    Raises:
        DistillError: Labels that are missing, of one class in training or not one per embedding;
            embeddings of different widths.
    """
    for features, labels, what, least in (
        (train_features, train_labels, "the training images", 2),
        (val_features, val_labels, "the validation images", 1),
    ):
        require_labels(labels, what=what, min_classes=least)
        require_label_each(features, labels, what=what)
    require_same_width(train_features, val_features)


def require_seed(seed: int) -> None:
    """Refuse a seed that FAISS or NumPy does not take.

    Raises:
        DistillError: Outside 0..2^31 - 1.
    """
    if not 0 <= seed <= _MAX_SEED:
        raise DistillError(f"the seed is {seed}, it must be between 0 and {_MAX_SEED}")


def require_ks(ks: Sequence[int], *, most: int, what: str = "the number of indexed images") -> None:
    """Refuse numbers of neighbours when there is none, or one that there are not.

    Raises:
        DistillError: No k, or one outside 1..`most`.
    """
    if len(ks) == 0:
        raise DistillError(f"no k was given, name one or more between 1 and {what}, {most}")
    for k in ks:
        require_k(k, most=most, what=what)


def require_k(k: int, *, most: int, what: str = "the number of indexed images") -> None:
    """Refuse a number of neighbours that there are not.

    Raises:
        DistillError: k outside 1..`most`.
    """
    if not 1 <= k <= most:
        raise DistillError(f"k is {k}, it must be between 1 and {what}, {most}")
