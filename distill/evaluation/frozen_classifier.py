"""A frozen network with a head that is fitted on clean training images, for robustness tests.

The head `nn` predicts the class of the nearest training image (L2-normalized embeddings, exact
search); `linear` is logistic regression on standardized embeddings with a penalty of 1 / N, which
is scikit-learn's C = 1. Predictions can be restricted to a subset of the classes, as ImageNet-A and
-R do: the logits, or the training images, of the other classes are ignored. Limit: everything is in
memory on the CPU.

Shapes: N training images, M queries, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from distill.data.images import Images
from distill.embeddings.cache import NetworkCache
from distill.embeddings.embed import DatasetEmbedder, Embeddings, NetworkView, embed
from distill.embeddings.search import (
    exact_index,
    l2_normalized,
    require_labels,
    require_same_width,
)
from distill.errors import DistillError
from distill.evaluation.linear_heads import fit_logistic, require_finite
from distill.models.networks import EmbeddingNetwork

HeadName = Literal["nn", "linear"]
_MAX_ITERATIONS = 1000


class NearestNeighborHead:
    """Predicts the class of the nearest training image.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._features, self._labels = l2_normalized(features), labels
        self._index = exact_index(self._features, metric="inner product")

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """Return the class (M,) int64 of every embedding (M, D), one of `among` if given.

        Raises:
            DistillError: Embeddings of another width or not finite; no training image of `among`.
        """
        require_same_width(self._features, features)
        rows, index = np.arange(len(self._labels)), self._index
        if among is not None:
            rows = np.flatnonzero(np.isin(self._labels, among))
            _require_some(rows)
            index = exact_index(self._features[rows], metric="inner product")
        return self._labels[rows[index.search(l2_normalized(features), 1)[1][:, 0]]]


class LinearHead:
    """Predicts by logistic regression.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, two or more.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        require_finite(features)
        self._heads, self._standardizer = fit_logistic(
            features,
            labels,
            np.arange(len(features)),
            num_classes=int(labels.max()) + 1,
            penalties=[1 / len(features)],
            max_iterations=_MAX_ITERATIONS,
        )
        self._classes = np.unique(labels)

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """See `NearestNeighborHead.predict`."""
        require_same_width(self._standardizer.mean[None], features)
        require_finite(features)
        classes = self._classes
        if among is not None:
            classes = np.intersect1d(classes, among)
            _require_some(classes)
        logits = self._heads.logits(self._standardizer(torch.from_numpy(features)))[:, 0]
        return classes[logits[:, torch.from_numpy(classes)].argmax(1).numpy()]


def fit_head(
    name: HeadName, features: np.ndarray, labels: np.ndarray
) -> NearestNeighborHead | LinearHead:
    """Fit a head on clean training embeddings.

    Args:
        name: `nn` or `linear`.
        features: (N, D), any scale.
        labels: (N,) classes, at least 0.

    Raises:
        DistillError: No labels, one class only, or embeddings that are not finite.
    """
    require_labels(labels, what="the training images")
    head = NearestNeighborHead if name == "nn" else LinearHead
    return head(features, labels)


def _require_some(of_classes: np.ndarray) -> None:
    if len(of_classes) == 0:
        raise DistillError(
            "no training image is of the classes that predictions are restricted to; train and "
            "measure on data that have classes in common"
        )


@dataclass
class FrozenClassifier:
    """A network with a head, which predicts classes of any images.

    Attributes:
        cache: The network with its embeddings of clean images and its inference settings.
        head_name: See `fit_head`.
        val_index: The validation images to measure on, sorted.
    """

    cache: NetworkCache
    head_name: HeadName
    val_index: np.ndarray

    @property
    def role(self) -> str:
        """`student` or `teacher`."""
        return self.cache.what

    @property
    def network(self) -> EmbeddingNetwork:
        """The network."""
        return self.cache.network

    @property
    def embedder(self) -> DatasetEmbedder:
        """The images and the inference settings."""
        return self.cache.embedder

    @cached_property
    def head(self) -> NearestNeighborHead | LinearHead:
        """The head; the first use embeds the training images, unless they are cached.

        Raises:
            DistillError: See `fit_head`.
        """
        train = self.cache.stored("train").in_memory()
        return fit_head(self.head_name, train.features, train.labels)

    @cached_property
    def clean(self) -> Embeddings:
        """Embeddings of the clean validation images."""
        return self.cache.stored("val", self.val_index).in_memory()

    @property
    def val(self) -> Images:
        """The validation images."""
        assert self.embedder.data.val is not None
        return self.embedder.data.val

    def error(self, view: NetworkView | None = None, *, description: str = "") -> float:
        """Return the share of validation images that are classified wrongly.

        Args:
            view: The view to classify; None: the clean view.
            description: Shown before the progress bar.

        Raises:
            DistillError: No image can be read.
        """
        head = self.head  # fitted first, so that progress bars do not mix
        embedded = self.clean
        if view is not None:
            embedded = self.embed(self.val, self.val_index, view=view, description=description)
        if len(embedded.labels) == 0:
            raise DistillError(f"no image of {self.val.name} can be read; name other --data")
        return float(np.mean(head.predict(embedded.features) != embedded.labels))

    def embed(
        self,
        images: Images,
        index: np.ndarray,
        *,
        view: NetworkView | None = None,
        description: str,
    ) -> Embeddings:
        """Embed the images at `index` of any set."""
        return embed(
            self.network,
            images,
            **vars(self.embedder.inference),
            view=view,
            indices=index,
            description=f"{self.role}, {description}",
        )
