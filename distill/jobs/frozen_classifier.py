"""A network with a head that is fitted on clean training images, once, when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.data.images import Images
from distill.errors import DistillError
from distill.evaluation.embed import Embeddings, embed
from distill.evaluation.frozen_head import Head, HeadName, fit_head
from distill.evaluation.network_view import ShownView
from distill.jobs.evaluator import Evaluator
from distill.jobs.network_cache import NetworkCache
from distill.networks import EmbeddingNetwork


@dataclass
class FrozenClassifier:
    """Predicts classes of images that nothing was fitted on.

    Attributes:
        cache: The network, its embeddings of clean images, and how it goes over others.
        head_name: See `fit_head`.
        val_index: The clean validation images that count, sorted.
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
        """The network, on the evaluator's device."""
        return self.cache.network

    @property
    def evaluator(self) -> Evaluator:
        """The images, and how networks go over them."""
        return self.cache.evaluator

    @cached_property
    def head(self) -> Head:
        """The head; the first use embeds the training images, unless they lie on the disk.

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
        assert self.evaluator.data.val is not None
        return self.evaluator.data.val

    def error(self, view: ShownView | None = None, *, description: str = "") -> float:
        """Return the share of validation images that are taken for another class.

        Args:
            view: What the network is shown of them; None: the clean view.
            description: Stands before the progress bar.

        Raises:
            DistillError: No image can be read.
        """
        head = self.head  # before the images of the first error, whose bar would come in between
        found = self.clean
        if view is not None:
            found = self.embed(self.val, self.val_index, view=view, description=description)
        if len(found.labels) == 0:
            raise DistillError(f"no image of {self.val.name} can be read; name other --data")
        return float(np.mean(head.predict(found.features) != found.labels))

    def embed(
        self,
        images: Images,
        index: np.ndarray,
        *,
        view: ShownView | None = None,
        description: str,
    ) -> Embeddings:
        """Embed the images at `index` of any set."""
        return embed(
            self.network,
            images,
            **vars(self.evaluator.how(images)),
            view=view,
            indices=index,
            description=f"{self.role}, {description}",
        )
