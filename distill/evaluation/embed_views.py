"""Embeds the two views of pre-training of a set of images; they follow from a seed alone.

Shapes: N images of side S, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.data.distortions import distort
from distill.data.images import Images
from distill.data.lasting_batches import lasting_batches
from distill.data.two_views import two_views
from distill.data.views import TrainingViews, training_loader
from distill.engine.device import full_float32, images_per_pass
from distill.errors import DistillError
from distill.terminal import progress_bar


@dataclass(frozen=True)
class EmbeddedViews:
    """Two views of N images; rows belong together, in an order that follows from the seed.

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
        augmentation: As `distill.data.two_views` knows them.
        seed: Of the order and of everything random in the views.
        device: Where `encode` computes.
        num_workers: Processes that load images; None: by cores and data.
        description: Shown before the progress bar.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.

    Raises:
        DistillError: An unknown augmentation, fewer than two images that can be read, or vectors
            that are not finite.
    """
    views = two_views(image_size, augmentation)
    shown = TrainingViews(
        images, indices, views.view, views.second_view, distortion=views.draw, seed=seed
    )

    def batches_after(done: int) -> Iterable[Batch]:
        return training_loader(
            shown,
            batch_size=images_per_pass(image_size, device),
            num_epochs=1,
            start_batch=done,
            num_workers=num_workers,
        )

    pixels, first, second = [], [], []
    with full_float32(device), progress_bar(len(indices), description=description) as bar:
        for batch in lasting_batches(batches_after):
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
        raise DistillError(f"fewer than two of the chosen images of {images.name} can be read")
    found = EmbeddedViews(torch.cat(pixels), torch.cat(first), torch.cat(second))
    _require_finite(found)
    return found


def _require_finite(views: EmbeddedViews) -> None:
    finite = (views.first.isfinite() & views.second.isfinite()).all(dim=1)
    if not finite.all():
        raise DistillError(
            f"{int((~finite).sum())} of {len(finite)} embeddings are not finite; the network's "
            "weights are damaged or its training diverged"
        )
