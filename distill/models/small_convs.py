"""Convolutions with few output pixels as one matrix product: faster training on a CPU.

The last layers of a small student have feature maps of a few pixels, and PyTorch's CPU convolutions
are optimized for large ones: at 2 x 2 pixels and 512 channels, forward and backward take four times
as long as one matrix product (`tools/bench_few_pixels.py`). Limits: CPU, and only when gradients
are recorded, so that evaluation and export use PyTorch's own convolution.

Shapes: B batch, C and O channels, H x W pixels in, P x Q pixels out, K x L kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PIXELS = 4  # P Q; with more, a product is not faster
MAX_PIXELS_OF_LARGE = 9  # for kernels larger than a core's cache
LARGE = 2**20  # weights of such a kernel


class FewPixelConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes small maps as a matrix product when gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, O, P, Q)."""
        if torch.is_grad_enabled() and x.is_cpu and x.dim() == len("BCHW"):
            rows, columns = (self._num_out(x.shape[2 + axis], axis) for axis in range(2))
            most = MAX_PIXELS_OF_LARGE if self.weight.numel() >= LARGE else MAX_PIXELS
            if min(rows, columns) > 0 and rows * columns <= most:
                return self._product(x, rows, columns)
        return super().forward(x)

    def _num_out(self, size: int, axis: int) -> int:
        room = size + 2 * int(self.padding[axis]) - self.kernel_size[axis]
        return room // self.stride[axis] + 1

    def _product(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Convolve by one product, without kernel positions ("taps") that see only padding."""
        (top, bottom), (left, right) = (
            self._used_taps(x.shape[2 + axis], out, axis)
            for axis, out in enumerate((rows, columns))
        )
        above, beside = (int(padding) for padding in self.padding)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, beside, beside, above, above))
        down, across = self.stride
        taps = [
            padded[
                :, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across
            ]
            for i in range(top, bottom)
            for j in range(left, right)
        ]
        kernel = self.weight[:, :, top:bottom, left:right].permute(0, 2, 3, 1)
        patches = torch.cat(taps, dim=-1).flatten(0, 2)  # B P Q x taps C
        product = F.linear(patches, kernel.flatten(1), self.bias)
        return product.unflatten(0, (len(x), rows, columns)).permute(0, 3, 1, 2)

    def _used_taps(self, size: int, out: int, axis: int) -> tuple[int, int]:
        """Return the range of taps along an axis that see at least one pixel."""
        padding, stride = int(self.padding[axis]), self.stride[axis]
        return max(0, padding - stride * (out - 1)), min(self.kernel_size[axis], size + padding)


def patch_small_convs(network: nn.Module) -> None:
    """Turn the plain convolutions of a network into `FewPixelConv2d`, in place."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and module.kernel_size != (1, 1)
        ):
            module.__class__ = FewPixelConv2d
