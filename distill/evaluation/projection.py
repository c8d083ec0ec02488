"""Unit vectors of a trained network: outputs of the heads of pre-training, or embeddings.

Shapes: N images of side S, B batch, D width of the unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.distortions import distort
from distill.data.images import Images
from distill.data.loader import Batch, TrainingViews, training_loader
from distill.data.views import two_views
from distill.data.workers import guarded_batches
from distill.device import full_float32, images_per_pass
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork
from distill.models.weights import mismatches, read_state_dict, shapes
from distill.run_directory import HEADS, read_config
from distill.terminal import progress_bar
from teachers.pretraining import build_heads, directions


class Projection(nn.Module):
    """Maps images to unit vectors, frozen and in evaluation mode; images may take a gradient.

    Args:
        network: The backbone.
        method: The heads that it was pre-trained through; None: the normalized embedding itself.
    """

    def __init__(self, network: EmbeddingNetwork, method: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.method: Any = method
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D), float32.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1], not normalized.
        """
        embedding = self.network(images)
        if self.method is None:
            return directions(embedding)
        return self.method.projection(self.method.head(embedding))


def through_heads(network: EmbeddingNetwork, run: Path) -> Projection:
    """Put the heads of a pre-training run behind its backbone.

    Args:
        network: The run's backbone, on any device; the projection is on the same.
        run: The run directory.

    Raises:
        DistillError: A run without heads, or heads that do not fit.
    """
    if not has_heads(run):
        raise DistillError(
            f"{run} has no {HEADS}, so it has no projection: only a finished run of `distill "
            "pretrain` has one; use --layer backbone"
        )
    options = read_config(run, command="pretrain")
    method = build_heads(options, network.embedding_dim)
    heads = read_state_dict(run / HEADS)
    problems = mismatches(shapes(method.state_dict()), shapes(heads))
    if problems:
        raise DistillError(
            f"{run / HEADS} does not fit {options['method']} as config.yaml describes it: "
            f"{'; '.join(problems)}; restore both from the same run, or use --layer backbone"
        )
    method.load_state_dict(heads, strict=False)  # `mismatches` allows what may be absent
    return Projection(network, method.to(network.mean.device))


def has_heads(run: Path) -> bool:
    """Return whether a run directory holds the heads of pre-training."""
    return (run / HEADS).is_file()


@dataclass(frozen=True)
class EmbeddedViews:
    """Two views of N images, row by row, in an order that depends on the seed alone.

    Attributes:
        images: The first views, float32 N x 3 x S x S in [0, 1], on the CPU.
        first: The encoder's vectors of the first views, float32 N x D, on the CPU.
        second: The encoder's vectors of the second views, likewise.
    """

    images: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def embed_views(
    encode: Callable[[Tensor], Tensor],
    images: Images,
    indices: np.ndarray,
    *,
    image_size: int,
    augmentation: str,
    seed: int,
    device: torch.device,
    num_workers: int | None = None,
    description: str = "embed",
    on_bad_images: Callable[[Sequence[str]], None] | None = None,
) -> EmbeddedViews:
    """Embed two views of every image, in full float32.

    Args:
        encode: Float32 images in [0, 1] on `device` -> B x D.
        images: The set.
        indices: The images of the set to embed.
        image_size: S.
        augmentation: As `distill.data.views` knows them.
        seed: Of the order and of everything random in the views.
        device: Where `encode` computes.
        num_workers: Processes that load images; None: by cores and data.
        description: Shown before the progress bar.
        on_bad_images: Called with the descriptions of images that cannot be read, batch by batch;
            raises to end the pass.

    Raises:
        DistillError: An unknown augmentation, fewer than two images that can be read, or vectors
            that are not finite.
    """
    pair = two_views(image_size, augmentation)
    shown = TrainingViews(
        images, indices, pair.view, pair.second_view, distortion=pair.draw, seed=seed
    )

    def batches() -> Iterable[Batch]:
        return training_loader(
            shown,
            batch_size=images_per_pass(image_size, device),
            num_epochs=1,
            num_workers=num_workers,
        )

    pixels, first, second = [], [], []
    with full_float32(device), progress_bar(len(indices), description=description) as bar:
        for batch in guarded_batches(batches):
            if batch.bad and on_bad_images is not None:
                on_bad_images(batch.bad)
            bar.update(len(batch.index) + len(batch.bad))
            if not len(batch.index):
                continue
            assert batch.second_view is not None
            assert batch.distortion is not None
            # On the CPU, so that every device sees the same pixels.
            x = distort(batch.view, batch.distortion[:, 0])
            y = distort(batch.second_view, batch.distortion[:, 1])
            pixels.append(x)
            first.append(encode(x.to(device)).cpu())
            second.append(encode(y.to(device)).cpu())
    if sum(map(len, first)) < 2:
        raise DistillError(
            f"fewer than two of the {len(indices):,} images of {images.name} can be read; choose "
            "other images"
        )
    views = EmbeddedViews(torch.cat(pixels), torch.cat(first), torch.cat(second))
    finite = (views.first.isfinite() & views.second.isfinite()).all(dim=1)
    if not finite.all():
        raise DistillError(
            f"{int((~finite).sum())} of {len(finite)} embeddings are not finite; the network's "
            "weights are damaged or its training diverged"
        )
    return views
