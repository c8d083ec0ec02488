"""A few real images as an exported network takes them.

Shapes: N images, S image side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.data.images import Images
from distill.errors import BadImageError, DistillError
from distill.evaluation.network_view import NetworkView
from distill.networks import InputSpec


def real_pixels(images: Images, spec: InputSpec, *, number: int) -> Tensor:
    """Return evenly spaced images of a set through the evaluation view.

    Args:
        images: The set; files that cannot be read are passed over.
        spec: What the network wants to see.
        number: How many to look at, at least 1; the set may be smaller.

    Returns:
        float32 (N, 3, S, S) in [0, 1], 1 <= N <= number.

    Raises:
        DistillError: None of them can be read.
    """
    view = NetworkView(spec).build()
    spaced = np.linspace(0, len(images) - 1, min(number, len(images))).round().astype(np.int64)
    found = []
    for index in spaced.tolist():
        try:
            found.append(view(images.load(index)))
        except BadImageError:
            continue
    if not found:
        raise DistillError(
            f"none of {len(spaced)} images of {images.name} can be read, and an exported file is "
            "compared on real images; name others with --data"
        )
    return torch.stack(found).float() / 255
