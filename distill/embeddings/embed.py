"""Embeds a set of images with a network, once; evaluations are pure functions of what comes out.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from distill.data.images import Images
from distill.data.loader import Batch, evaluation_loader
from distill.data.views import View, evaluation_view
from distill.data.workers import guarded_batches
from distill.device import autocast, images_per_pass
from distill.models.networks import EmbeddingNetwork, InputSpec
from distill.terminal import progress_bar


class ShownView(Protocol):
    """A view of every image that a network can be shown."""

    @property
    def draw(self) -> tuple[int, int] | None:
        """Seed and number that a random view depends on; None for a view without randomness."""

    def build(self) -> View:
        """Return the function from an image to the view."""


@dataclass(frozen=True)
class NetworkView:
    """The evaluation view of every image, at the network's own input size.

    Attributes:
        input: Of the network.
    """

    input: InputSpec
    draw: None = None

    def build(self) -> View:
        """Return the function from an image to the view."""
        return evaluation_view(
            self.input.image_size,
            crop_fraction=self.input.crop_fraction,
            interpolation=self.input.interpolation,
        )


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
    """How a network goes over images.

    Attributes:
        device: Where the network lies.
        precision: `fp32` or `bf16`.
        batch_size: Images per forward pass; None: by image size and device.
        num_workers: Processes that load images.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.
    """

    device: torch.device
    precision: str
    batch_size: int | None = None
    num_workers: int = 0
    on_bad_images: Callable[[Sequence[str]], None] | None = None


def embed(
    network: EmbeddingNetwork,
    images: Images,
    *,
    device: torch.device,
    precision: str,
    view: ShownView | None = None,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    description: str = "embed",
    on_bad_images: Callable[[Sequence[str]], None] | None = None,
) -> Embeddings:
    """Embed images in evaluation mode, into memory.

    Args:
        network: Already on `device`; its mode is restored afterwards.
        images: The set.
        device: Where the network lies.
        precision: `fp32` or `bf16`.
        view: What the network is shown; None: its evaluation view.
        indices: The images of the set to embed; None takes all.
        batch_size: Images per forward pass; None: by image size and device.
        num_workers: Processes that load images.
        description: Shown before the progress bar.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.

    Returns:
        Features (N, D) float32 with labels and indices of the images that could be read.

    Raises:
        LoaderDiedError: A process that loads images died.

    Example:
        >>> import numpy as np, torch
        >>> from distill.data.images import ArrayImages
        >>> from distill.models.networks import wrap_module
        >>> images = ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), None, name="black")
        >>> network = wrap_module(torch.nn.Flatten(), image_size=8)
        >>> embed(network, images, device=torch.device("cpu"), precision="fp32").features.shape
        (2, 192)
    """
    config = InferenceConfig(device, precision, batch_size, num_workers, on_bad_images)
    batches = list(
        embedded_batches(
            network, images, config, view=view, indices=indices, description=description
        )
    )
    nothing = np.zeros((0, network.embedding_dim), np.float32)  # when no index was given
    no_numbers = np.zeros(0, np.int64)
    return Embeddings(
        np.concatenate([nothing, *(batch.features for batch in batches)]),
        np.concatenate([no_numbers, *(batch.labels for batch in batches)]),
        np.concatenate([no_numbers, *(batch.index for batch in batches)]),
        tuple(name for batch in batches for name in batch.bad),
    )


@torch.no_grad()
def embedded_batches(
    network: EmbeddingNetwork,
    images: Images,
    config: InferenceConfig,
    *,
    view: ShownView | None = None,
    indices: np.ndarray | None = None,
    description: str = "embed",
) -> Generator[Embeddings]:
    """Embed images in evaluation mode, a batch at a time, in order.

    Args:
        network: Already on the device; its mode is restored afterwards.
        images: The set.
        config: Device, precision, sizes.
        view: What the network is shown; None: its evaluation view.
        indices: The images of the set to embed; None takes all.
        description: Shown before the progress bar.

    Yields:
        The embeddings of a batch; images that could not be read are in `bad`.
    """
    view = view or NetworkView(network.input)
    order = np.arange(len(images)) if indices is None else indices
    batch_size = config.batch_size or images_per_pass(network.input.image_size, config.device)

    def batches() -> Iterable[Batch]:
        return evaluation_loader(
            images,
            view.build(),
            indices=order,
            batch_size=batch_size,
            num_workers=config.num_workers,
            draw=view.draw,
        )

    was_training = network.training
    network.eval()
    try:
        with progress_bar(len(order), description=description) as bar:
            for batch in guarded_batches(batches):
                if batch.bad and config.on_bad_images is not None:
                    config.on_bad_images(batch.bad)
                yield _embedded(network, batch, config)
                bar.update(len(batch.index) + len(batch.bad))
    finally:
        network.train(was_training)


def _embedded(network: EmbeddingNetwork, batch: Batch, config: InferenceConfig) -> Embeddings:
    if len(batch.index) == 0:  # such views have no size
        features = np.zeros((0, network.embedding_dim), np.float32)
    else:
        with autocast(config.device, config.precision):
            features = network(batch.view.to(config.device)).cpu().numpy()
    return Embeddings(features, batch.label.numpy(), batch.index.numpy(), tuple(batch.bad))
