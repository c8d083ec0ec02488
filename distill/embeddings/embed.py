"""Embeds images with a network in evaluation mode.

`embed` returns all embeddings in memory, `embedded_batches` yields them batch by batch;
`DatasetEmbedder` embeds the training and validation images of a dataset with fixed settings so
that numbers of several networks can be compared. `distill.embeddings.cache` keeps embeddings on
disk.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from distill.data.images import Images
from distill.data.loader import Batch, evaluation_loader
from distill.data.sources import ImageData
from distill.data.views import View, evaluation_view
from distill.data.workers import guarded_batches
from distill.device import autocast, images_per_pass
from distill.embeddings.search import require_labels
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork, InputSpec, evaluation_mode
from distill.terminal import progress_bar

Split = Literal["train", "val"]


@dataclass(frozen=True)
class NetworkView:
    """The evaluation view of every image, at the network's own input size.

    Attributes:
        input: Of the network.
    """

    input: InputSpec

    @property
    def draw(self) -> tuple[int, int] | None:
        """Seed and number that a random view depends on; None for a view without randomness."""
        return None

    def build(self) -> View:
        """Return the transform from an image to the view."""
        size, crop = self.input.image_size, self.input.crop_fraction
        return evaluation_view(size, crop_fraction=crop, interpolation=self.input.interpolation)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the images at `index`, in that order.

    Attributes:
        features: (N, D) float32, not normalized.
        labels: (N,) int64, -1 where an image has none.
        index: (N,) int64, the image's place in its set; images that could not be read are absent.
        bad: Descriptions of those.
    """

    features: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    bad: tuple[str, ...]


@dataclass(frozen=True)
class InferenceConfig:
    """Inference settings.

    Attributes:
        device: Where the network lies.
        precision: `fp32` or `bf16`.
        batch_size: Images per forward pass; None: by image size and device.
        num_workers: Processes that load images; None: by cores and data.
        on_bad_images: Called with the descriptions of images that cannot be read, batch by batch;
            raises to end the pass.
    """

    device: torch.device
    precision: str
    batch_size: int | None = None
    num_workers: int | None = None
    on_bad_images: Callable[[Sequence[str]], None] | None = None


def embed(
    network: EmbeddingNetwork,
    images: Images,
    *,
    device: torch.device | None = None,
    precision: str = "fp32",
    view: NetworkView | None = None,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    description: str = "embed",
    on_bad_images: Callable[[Sequence[str]], None] | None = None,
) -> Embeddings:
    """Embed images in evaluation mode, into memory.

    Args:
        network: Maps (B, 3, S, S) to (B, D); its mode is restored afterwards. `wrap_module` makes
            one of any module.
        images: N images.
        device: Where the network lies; None: where its first parameter is, else the CPU.
        precision: `fp32` or `bf16`.
        view: View of the images; None: the network's evaluation view.
        indices: (M,) int64, the images to embed, in this order; None: all of them.
        batch_size: Images per forward pass; None: by image size and device.
        num_workers: Processes that load images; None: by cores and data.
        description: Shown before the progress bar.
        on_bad_images: Called with the descriptions of images that cannot be read, batch by batch;
            raises to end the pass. None: they are left out.

    Returns:
        Features (M, D) float32 on the CPU with labels and indices, without the images that could
        not be read.

    Raises:
        LoaderDiedError: A process that loads images died.

    Example:
        >>> import numpy as np, torch
        >>> from distill.data.images import ArrayImages
        >>> from distill.models.networks import wrap_module
        >>> images = ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), name="black")
        >>> found = embed(wrap_module(torch.nn.Flatten(), image_size=8), images)
        >>> found.features.shape, found.labels
        ((2, 192), array([0, 1]))
    """
    if device is None:
        first = next(network.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    inference = InferenceConfig(device, precision, batch_size, num_workers, on_bad_images)
    batches = list(
        embedded_batches(
            network, images, inference, view=view, indices=indices, description=description
        )
    )
    no_features = np.zeros((0, network.embedding_dim), np.float32)  # for an empty index
    no_numbers = np.zeros(0, np.int64)
    return Embeddings(
        np.concatenate([no_features, *(batch.features for batch in batches)]),
        np.concatenate([no_numbers, *(batch.labels for batch in batches)]),
        np.concatenate([no_numbers, *(batch.index for batch in batches)]),
        tuple(name for batch in batches for name in batch.bad),
    )


@torch.no_grad()
def embedded_batches(
    network: EmbeddingNetwork,
    images: Images,
    inference: InferenceConfig,
    *,
    view: NetworkView | None = None,
    indices: np.ndarray | None = None,
    description: str = "embed",
) -> Generator[Embeddings]:
    """Embed images in evaluation mode, a batch at a time, in order.

    Args:
        network: On the device; its mode is restored afterwards.
        images: The set.
        inference: Device, precision, sizes.
        view: View of the images; None: the network's evaluation view.
        indices: The images to embed; None: all of them.
        description: Shown before the progress bar.

    Yields:
        The embeddings of a batch; images that could not be read are in `bad`.
    """
    view = view or NetworkView(network.input)
    order = np.arange(len(images)) if indices is None else indices
    size = inference.batch_size or images_per_pass(network.input.image_size, inference.device)
    loader = evaluation_loader(
        images,
        view.build(),
        indices=order,
        batch_size=size,
        num_workers=inference.num_workers,
        draw=view.draw,
    )
    with evaluation_mode(network), progress_bar(len(order), description=description) as bar:
        for batch in guarded_batches(lambda: loader):
            if batch.bad and inference.on_bad_images is not None:
                inference.on_bad_images(batch.bad)
            yield _embedded(network, batch, inference)
            bar.update(len(batch.index) + len(batch.bad))


def _embedded(network: EmbeddingNetwork, batch: Batch, inference: InferenceConfig) -> Embeddings:
    if len(batch.index) == 0:  # an empty batch has no image size
        features = np.zeros((0, network.embedding_dim), np.float32)
    else:
        with autocast(inference.device, inference.precision):
            features = network(batch.view.to(inference.device)).cpu().numpy()
    return Embeddings(features, batch.label.numpy(), batch.index.numpy(), tuple(batch.bad))


@dataclass(frozen=True)
class DatasetEmbedder:
    """Embeds a dataset with fixed settings so that numbers of several networks can be compared.

    Attributes:
        data: The images; train is indexed or clustered, val is measured on.
        train_index: The training images that can be read.
        val_index: The validation images that can be read; empty without validation images.
        device: Where networks run.
        precision: `fp32` or `bf16`.
        num_workers: Processes that load images; None: by cores and data.
        batch_size: Images per forward pass; None: by image size and device.
        bad_images: Called with the descriptions of images that cannot be read.
    """

    data: ImageData
    train_index: np.ndarray
    val_index: np.ndarray
    device: torch.device
    precision: str
    num_workers: int | None = None
    batch_size: int | None = None
    bad_images: Callable[[Sequence[str]], None] | None = None

    @property
    def inference(self) -> InferenceConfig:
        """The inference settings."""
        return InferenceConfig(
            self.device, self.precision, self.batch_size, self.num_workers, self.bad_images
        )

    def unavailable_reason(self) -> str | None:
        """Return why no accuracy can be measured on this data, None when one can."""
        if self.data.val is None or len(self.val_index) == 0:
            return f"{self.data.name} has no validation images (val/ with a folder per class)"
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
        """Return the images of an existing split, and the indices of those that can be read."""
        if split == "train":
            return self.data.train, self.train_index
        assert self.data.val is not None
        return self.data.val, self.val_index

    def embed(
        self, network: EmbeddingNetwork, images: Images, index: np.ndarray, description: str
    ) -> Embeddings:
        """Embed the images at `index` of a set."""
        settings = vars(self.inference)
        return embed(network, images, **settings, indices=index, description=description)

    def embed_both(self, network: EmbeddingNetwork, *, what: str) -> tuple[Embeddings, Embeddings]:
        """Embed the training and the validation images.

        Args:
            network: On the device.
            what: Name of the network, shown before the progress bar.

        Raises:
            DistillError: The data has no labels to measure with (`unavailable_reason`).
        """
        reason = self.unavailable_reason()
        if reason is not None:
            raise DistillError(reason)
        train = self.embed(network, *self.split("train"), f"{what}, train")
        return train, self.embed(network, *self.split("val"), f"{what}, val")
