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
from distill.networks import EmbeddingNetwork


@dataclass
class FrozenClassifier:
    """Predicts classes of images that nothing was fitted on.

    Attributes:
        role: `student` or `teacher`.
        network: On the evaluator's device.
        evaluator: The training images, and how networks go over images.
        head_name: See `fit_head`.
        val_index: The clean validation images that count.
    """

    role: str
    network: EmbeddingNetwork
    evaluator: Evaluator
    head_name: HeadName
    val_index: np.ndarray

    @cached_property
    def head(self) -> Head:
        """The head; the first use embeds the training images.

        Raises:
            DistillError: See `fit_head`.
        """
        train = self.evaluator.embed_train(self.network, what=self.role)
        return fit_head(self.head_name, train.features, train.labels)

    @cached_property
    def clean(self) -> Embeddings:
        """Embeddings of the clean validation images."""
        return self.embed(self.val, self.val_index, description="clean")

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
