"""Embeds a set of images once; every evaluation is a pure function of what comes out.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill import distributed
from distill.data.images import Images
from distill.data.transforms import evaluation_view
from distill.data.views import evaluation_loader
from distill.engine.device import autocast, images_per_pass
from distill.engine.log import progress_bar
from distill.networks import EmbeddingNetwork
from distill.row_exchange import gather_array


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


@torch.no_grad()
def embed(
    network: EmbeddingNetwork,
    images: Images,
    *,
    device: torch.device,
    precision: str,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    description: str = "embed",
    on_bad_images: Callable[[Sequence[str]], None] | None = None,
) -> Embeddings:
    """Embed images in evaluation mode through the network's own evaluation view.

    Args:
        network: Already on `device`; its mode is restored afterwards.
        images: The set.
        device: Where the network lies.
        precision: `fp32` or `bf16`.
        indices: The images of the set to embed; None takes all.
        batch_size: Images per forward pass; None: by image size and device.
        num_workers: Processes that load images.
        description: Shown before the progress bar.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.
    """
    view = evaluation_view(
        network.input.image_size,
        crop_fraction=network.input.crop_fraction,
        interpolation=network.input.interpolation,
    )
    loader = evaluation_loader(
        images,
        view,
        indices=indices,
        batch_size=batch_size or images_per_pass(network.input.image_size, device),
        num_workers=num_workers,
    )
    total = len(images) if indices is None else len(indices)
    features, labels, index, bad = [], [], [], []
    was_training = network.training
    network.eval()
    with progress_bar(total, description=description) as bar:
        for batch in loader:
            if batch.bad and on_bad_images is not None:
                on_bad_images(batch.bad)
            bad.extend(batch.bad)
            with autocast(device, precision):
                features.append(network(batch.view.to(device)).cpu().numpy())
            labels.append(batch.label.numpy())
            index.append(batch.index.numpy())
            bar.update(len(batch.index) + len(batch.bad))
    network.train(was_training)
    if not features:  # no index was given
        features = [np.zeros((0, network.embedding_dim), np.float32)]
        labels, index = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    return Embeddings(
        np.concatenate(features), np.concatenate(labels), np.concatenate(index), tuple(bad)
    )


def gather_embeddings(mine: Embeddings) -> Embeddings:
    """Join what every rank embedded, in the order of the ranks; all ranks call it together.

    Returns:
        The embeddings of all ranks, the same on every rank; `mine` itself with one rank.
    """
    if distributed.world_size() == 1:
        return mine
    bad = distributed.union(set(mine.bad))
    features, labels, index = map(gather_array, (mine.features, mine.labels, mine.index))
    return Embeddings(features, labels, index, tuple(sorted(bad)))
