"""Embeds one dataset under one setting, so that numbers of several networks can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from distill.data.images import Images
from distill.data.sources import ImageData
from distill.data.workers import default_num_workers
from distill.embeddings.embed import Embeddings, InferenceConfig, embed
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Evaluator:
    """Embeds a dataset under one setting, so that numbers of several networks can be compared.

    Attributes:
        data: The images; train is indexed or clustered, val is counted on.
        train_index: The training images that can be read.
        val_index: The validation images that can be read; empty without validation images.
        device: Where networks run.
        precision: `fp32` or `bf16`.
        num_workers: Processes that load images; None: by cores and data.
        batch_size: Images per forward pass; None: by image size and device.
        bad_images: Told of images that cannot be read.
    """

    data: ImageData
    train_index: np.ndarray
    val_index: np.ndarray
    device: torch.device
    precision: str
    num_workers: int | None = None
    batch_size: int | None = None
    bad_images: Callable[[Sequence[str]], None] | None = None

    def unavailable_reason(self) -> str | None:
        """Return why nothing can be measured on this data, None when it can."""
        if self.data.val is None or len(self.val_index) == 0:
            return f"{self.data.name} has no validation images (val/ with a folder per class)"
        from distill.embeddings.search import require_labels

        try:
            for images, index, least in (
                (self.data.train, self.train_index, 2),
                (self.data.val, self.val_index, 1),
            ):
                labels = None if images.labels is None else images.labels[index]
                require_labels(labels, what=f"the images of {images.name}", min_classes=least)
        except DistillError as error:
            return str(error)
        return None

    def split(self, split: Split) -> tuple[Images, np.ndarray]:
        """Return the images of a split, which must be there, and which of them can be read."""
        if split == "train":
            return self.data.train, self.train_index
        assert self.data.val is not None
        return self.data.val, self.val_index

    def num_classes(self) -> int:
        """Return how many classes the training images are of, 0 without labels."""
        labels = self.data.train.labels
        return 0 if labels is None else len(np.unique(labels[self.train_index]))

    def embed_train(self, network: EmbeddingNetwork, *, what: str) -> Embeddings:
        """Embed the training images; `what` names the network before the progress bar."""
        return self.embed(network, self.data.train, self.train_index, f"{what}, train")

    def embed_both(
        self, network: EmbeddingNetwork, *, what: str, train: Embeddings | None = None
    ) -> tuple[Embeddings, Embeddings]:
        """Embed the training images, unless `train` holds them already, and the validation images.

        Raises:
            DistillError: When the data has no labels to measure with (`unavailable_reason`).
        """
        reason = self.unavailable_reason()
        if reason is not None:
            raise DistillError(reason)
        assert self.data.val is not None
        if train is None:
            train = self.embed_train(network, what=what)
        val = self.embed(network, self.data.val, self.val_index, f"{what}, val")
        return train, val

    def embed(
        self, network: EmbeddingNetwork, images: Images, index: np.ndarray, description: str
    ) -> Embeddings:
        """Embed the images at `index` of a set; `description` stands before the progress bar."""
        how = vars(self.inference_config(images))
        return embed(network, images, **how, indices=index, description=description)

    def inference_config(self, images: Images) -> InferenceConfig:
        """Return how networks go over a set of images under this setting."""
        workers = default_num_workers(images) if self.num_workers is None else self.num_workers
        return InferenceConfig(
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            num_workers=workers,
            on_bad_images=self.bad_images,
        )
