"""Embeds a set of images once; every evaluation is a pure function of what comes out.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill.data.batch import Batch
from distill.data.images import Images
from distill.data.lasting_batches import lasting_batches
from distill.data.views import evaluation_loader
from distill.engine.device import autocast, images_per_pass
from distill.evaluation.network_view import NetworkView, ShownView
from distill.networks import EmbeddingNetwork
from distill.terminal import progress_bar


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
class Pass:
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
    """
    how = Pass(device, precision, batch_size, num_workers, on_bad_images)
    batches = list(
        embedded_batches(network, images, how, view=view, indices=indices, description=description)
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
    how: Pass,
    *,
    view: ShownView | None = None,
    indices: np.ndarray | None = None,
    description: str = "embed",
) -> Generator[Embeddings]:
    """Embed images in evaluation mode, a batch at a time, in order.

    Args:
        network: Already on the device; its mode is restored afterwards.
        images: The set.
        how: Device, precision, sizes.
        view: What the network is shown; None: its evaluation view.
        indices: The images of the set to embed; None takes all.
        description: Shown before the progress bar.

    Yields:
        The embeddings of a batch; images that could not be read are in `bad`.
    """
    view = view or NetworkView(network.input)
    order = np.arange(len(images)) if indices is None else indices
    batch_size = how.batch_size or images_per_pass(network.input.image_size, how.device)

    def batches_after(done: int) -> Iterable[Batch]:
        return evaluation_loader(
            images,
            view.build(),
            indices=order[done * batch_size :],
            batch_size=batch_size,
            num_workers=how.num_workers,
            draw=view.draw,
        )

    was_training = network.training
    network.eval()
    try:
        with progress_bar(len(order), description=description) as bar:
            for batch in lasting_batches(batches_after):
                if batch.bad and how.on_bad_images is not None:
                    how.on_bad_images(batch.bad)
                yield _embedded(network, batch, how)
                bar.update(len(batch.index) + len(batch.bad))
    finally:
        network.train(was_training)


def _embedded(network: EmbeddingNetwork, batch: Batch, how: Pass) -> Embeddings:
    if len(batch.index) == 0:  # such views have no size
        features = np.zeros((0, network.embedding_dim), np.float32)
    else:
        with autocast(how.device, how.precision):
            features = network(batch.view.to(how.device)).cpu().numpy()
    return Embeddings(features, batch.label.numpy(), batch.index.numpy(), tuple(batch.bad))
