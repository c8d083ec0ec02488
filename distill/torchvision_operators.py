"""Computes torchvision's `nms` and `roi_align` in PyTorch, where its compiled ones cannot load.

That is the case of `distill.torchvision_wheel`: a torchvision built for CUDA beside a CPU-only
PyTorch. Its detection models then refuse to run. Here the two operators they need are registered
under torchvision's own names, and torchvision is told that it has operators. Wherever the compiled
ones load, nothing is done: they are many times faster.

Definitions: non-maximum suppression as in Girshick et al. (CVPR 2014); RoIAlign as in He et al.,
"Mask R-CNN" (ICCV 2017), section 3, with torchvision's conventions: `aligned` shifts by half a
pixel, otherwise regions are at least one pixel; `sampling_ratio` samples per bin and side, or, if
not positive, as many as the bin has pixels, rounded up; samples that lie more than a pixel outside
the map are zero. Deliberate limits: CPU only; torchvision's other operators stay missing.

Shapes: N boxes, K regions, B images, C channels, H x W the map, P x Q bins, S and T samples per bin
down and across.
"""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.torchvision_wheel import declare_missing_operators

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
)


@cache
def provide_missing_operators() -> bool:
    """Register `nms` and `roi_align` for CPU tensors, if torchvision's own cannot load.

    Returns:
        Whether anything had to be done.
    """
    library = declare_missing_operators()
    if library is None:
        return False
    extension = importlib.import_module("torchvision.extension")
    library.impl("nms", nms, "CPU")
    library.define(_ROI_ALIGN)
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")  # made of differentiable ones

    def has_operators() -> bool:
        return True

    extension._has_ops = has_operators  # type: ignore[attr-defined]
    # This module holds the name itself, and would compile a Python version at run time.
    module = importlib.import_module("torchvision.ops.roi_align")
    module._has_ops = has_operators  # type: ignore[attr-defined]
    return True


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep boxes that overlap no kept box of a higher score by more than a threshold.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,); equal ones keep their order.
        iou_threshold: Largest intersection over union that two kept boxes may have.

    Returns:
        int64, rows of the kept boxes, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    low, high = boxes[order, :2], boxes[order, 2:]
    areas = (high - low).prod(1)
    left = torch.arange(len(order), device=boxes.device)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = torch.minimum(high[best], high[left]) - torch.maximum(low[best], low[left])
        intersection = sides.clamp_min(0).prod(1)
        # Two boxes without an area give 0 / 0, which is not more than the threshold.
        overlap = intersection / (areas[best] + areas[left] - intersection)
        left = left[~(overlap > iou_threshold)]
    return order[torch.stack(kept)] if kept else order


def roi_align(  # noqa: PLR0917  (as torchvision calls it)
    maps: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average bilinear samples of feature maps in the bins of regions.

    Args:
        maps: (B, C, H, W).
        rois: (K, 5): image, x1, y1, x2, y2 in pixels of the image.
        spatial_scale: Pixels of the map per pixel of the image.
        pooled_height: P.
        pooled_width: Q.
        sampling_ratio: Samples per bin and side; not positive: one per pixel of the bin.
        aligned: Whether pixel centres lie at halves, as they should.

    Returns:
        (K, C, P, Q), of the type of `maps`; differentiable with respect to `maps` alone.
    """
    num_images, num_channels, height, width = maps.shape
    shift = 0.5 if aligned else 0.0
    edges = rois[:, 1:].detach().float() * spatial_scale - shift
    rows, row_weights = _samples(edges[:, [1, 3]], pooled_height, height, sampling_ratio, aligned)
    cols, col_weights = _samples(edges[:, [0, 2]], pooled_width, width, sampling_ratio, aligned)
    # A sample of a bin is a weighted sum of pixels, and so is their mean: K x P x Q bags of pixels.
    image = rois[:, 0].long()[:, None, None, None, None] * (height * width)
    pixels = image + rows[:, :, None, :, None] * width + cols[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * col_weights[:, None, :, None, :]
    table = maps.permute(0, 2, 3, 1).reshape(num_images * height * width, num_channels)
    is_narrow = maps.dtype in (torch.float16, torch.bfloat16)
    table = table.float() if is_narrow else table
    num_weights = pixels.shape[3] * pixels.shape[4]
    pooled = F.embedding_bag(
        pixels.reshape(-1, num_weights),
        table,
        per_sample_weights=weights.reshape(-1, num_weights).to(table.dtype),
        mode="sum",
    )
    shape = (len(rois), pooled_height, pooled_width, num_channels)
    return pooled.reshape(shape).permute(0, 3, 1, 2).contiguous().to(maps.dtype)


def _samples(
    edges: Tensor, num_bins: int, length: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the pixels that the samples of every bin read along one axis, and their weights.

    Args:
        edges: (K, 2), where the regions begin and end on the map.
        num_bins: P.
        length: Of the map.
        sampling_ratio: See `roi_align`.
        aligned: See `roi_align`.

    Returns:
        Positions int64 and weights float32, both (K, P, 2S); the weights of samples that a region
        does not have are zero, and each bin's add up to 1 where it lies on the map.
    """
    start, size = edges[:, 0], edges[:, 1] - edges[:, 0]
    if not aligned:
        size = size.clamp_min(1)
    bins = size / num_bins
    wanted = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    number = int(wanted.max().clamp_min(1)) if len(wanted) else 1
    sample = torch.arange(number, device=edges.device)
    within = (sample + 0.5) * (bins / wanted.clamp_min(1))[:, None]  # (K, S)
    first = start[:, None] + torch.arange(num_bins, device=edges.device) * bins[:, None]  # (K, P)
    at = first[:, :, None] + within[:, None, :]
    is_sampled = (sample < wanted[:, None])[:, None, :] & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    lower = at.floor()
    share = at - lower
    both = torch.stack([lower, (lower + 1).clamp_max(length - 1)], dim=3).long()
    weights = torch.stack([1 - share, share], dim=3) * is_sampled[..., None]
    weights = weights / wanted.clamp_min(1)[:, None, None, None]
    return both.flatten(2), weights.flatten(2)
