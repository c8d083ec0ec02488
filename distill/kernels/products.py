"""The two matrix products of the blocked anchor KL, in the fastest way that torch offers.

Shapes: n anchors of a block, D their width, R rows of embeddings.

On a CPU, float32 products go through 1 x 1 convolutions: torch gives those to oneDNN, but `mm` to
MKL, which keeps to half of the vector width on processors that are not Intel's. Same arithmetic,
same float32 accumulation. Sixteen images in the batch are what torch asks for before it calls
oneDNN from a single thread, hence blocks in multiples of 16.

Limits: float16 operands are the caller's to widen (CPU float16 products are slow). bfloat16
products round their result to bfloat16. torch's global precision switches apply.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

NUM_IMAGES = 16


def similarities(anchors: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products of anchors (n x D) and rows (R x D), n x R in their dtype."""
    if not _convolves(anchors):
        return anchors @ rows.T
    channels = F.conv2d(_as_images(anchors), rows[:, :, None, None])
    return channels.permute(0, 2, 3, 1).reshape(len(anchors), len(rows))


def weighted_sums(weights: Tensor, anchors: Tensor) -> Tensor:
    """Return, for each column of weights (n x R), the weighted sum of anchors (n x D), R x D."""
    if not _convolves(anchors):
        return weights.T @ anchors
    shape = (weights.shape[1], anchors.shape[1], 1, 1)
    return conv2d_weight(_as_images(anchors), shape, _as_images(weights))[:, :, 0, 0]


def _convolves(anchors: Tensor) -> bool:
    return (
        anchors.device.type == "cpu"
        and anchors.dtype == torch.float32
        and len(anchors) % NUM_IMAGES == 0
        and torch.backends.mkldnn.is_available()
    )


def _as_images(matrix: Tensor) -> Tensor:
    """View a matrix (n x C) as 16 images of C channels, n / 16 pixels wide, channels last."""
    return matrix.unflatten(0, (NUM_IMAGES, 1, -1)).permute(0, 3, 1, 2)
