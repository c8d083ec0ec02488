"""Anchor KL and its gradient in blocks of anchors, with plain matrix products: any device.

Evaluates the loss of `anchor_kl` without copying a bank and without autograd. Shapes: B batch, K
anchors, D width (Dt teacher, Ds student), n anchors in one block. Where an axis has length 2, entry
0 is the teacher's and entry 1 the student's. Anchors come before rows in a block (2 x n x B),
because products are faster with the bank on the left.

Pass 1 subtracts each block's largest logits (peaks) from its logits and keeps three numbers per row
and block: both sums of exponentials, and the sum of the teacher's times the logit gap; `merged`
combines them. It also records the exponentials. A block's exponentials times exp(peak - lse) are
its part of p or q; pass 2 scales the record and multiplies q - p by the student's anchors. With a
peak per block, large logits (temperature 1e-3, rows that are not unit) lose no precision.
Accumulating the gradient in pass 1 would save the record but need a second product with the bank.

On a CPU, float32 products run as 1 x 1 convolutions: torch uses oneDNN for those, but MKL for `mm`,
which uses only half of the vector width on processors other than Intel's. The accumulation is
float32 in both. With a single thread torch uses oneDNN only for batches of at least 16 images,
hence blocks in multiples of 16.

Limits: the record takes 2 x B x K floats while the gradient is computed. bfloat16 banks are
multiplied in bfloat16: embeddings and q - p are rounded to it, and torch rounds the similarities
(8 significant bits) and each block's share of the gradient; statistics and sums are float32.
float16 banks are converted to float32 block by block. float32 operands are not rounded here, but
torch's global precision settings apply.
"""

from __future__ import annotations

import itertools
import math
import threading

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from distill.kernels.scan import merged

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


# The logit of an excluded anchor, in place of minus infinity: a fully excluded block gets weight 0
# in the merge, and a fully excluded row has equal p and q: no loss, no gradient.
_EXCLUDED = -1e30
# Logits (2 x n x B) per block: 8 MiB of float32 stay in a CPU's last-level cache; a GPU needs few
# launches.
_LOGITS_PER_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 24}
_kept = threading.local()


class BlockedScan:
    """Both passes over the anchors; see `Scan`.

    Operands and masks as of `anchor_kl`; `temperatures` are the teacher's and the student's. With
    `with_gradient=False` there is no record, and `gradient` must not be called.
    """

    def __init__(
        self,
        teacher: Tensor,
        student: Tensor,
        teacher_anchors: Tensor,
        student_anchors: Tensor,
        *,
        temperatures: tuple[float, float],
        self_mask: tuple[Tensor, Tensor] | None = None,
        with_gradient: bool = True,
    ) -> None:
        B, K = len(student), len(student_anchors)
        banks = (teacher_anchors, student_anchors)
        logit_blocks = _LogitBlocks((teacher, student), banks, temperatures, self_mask)
        blocks, dtype, device = logit_blocks.bounds, logit_blocks.dtype, student.device
        num_logits = 2 * B * logit_blocks.num_per_block
        workspace = torch.empty(num_logits, dtype=dtype, device=device)
        record = _record(2 * B * K if with_gradient else num_logits, dtype, device)
        exponentials = []
        peak, mass = torch.empty(2, len(blocks), 2, B, dtype=dtype, device=device)
        gap = torch.empty_like(peak[:, :1])
        for index, (start, stop) in enumerate(blocks):
            logits = _leading(workspace, (2, stop - start, B))
            block = _leading(record[2 * B * start :] if with_gradient else record, logits.shape)
            logit_blocks.write(index, logits)
            torch.amax(logits, 1, out=peak[index])
            torch.sub(logits, peak[index, :, None], out=block).exp_()
            torch.sum(block, 1, out=mass[index])
            torch.sum(logits[0].sub_(logits[1]).mul_(block[0]), 0, out=gap[index, 0])
            exponentials.append(block)
        self._logit_blocks, self._exponentials, self._peak = logit_blocks, exponentials, peak
        lse = peak.double() + mass.double().log()
        self.statistics = merged(torch.cat([lse, gap.double() / mass[:, :1]], 1))

    def gradient(self, lse: Tensor) -> Tensor:
        """Return the gradient, float32 (float64 for float64 banks); it overwrites the record."""
        bank, blocks = self._logit_blocks.student_bank, self._logit_blocks.bounds
        scales = (self._peak - lse).exp_().to(self._logit_blocks.dtype)
        gradient = scales.new_zeros(scales.shape[2], bank.width)
        for (start, stop), block, scale in zip(blocks, self._exponentials, scales, strict=True):
            difference = block[1].mul_(scale[1]).addcmul_(block[0], scale[0], value=-1)
            anchors = bank.block(start, stop)
            gradient += weighted_sums(difference.to(anchors.dtype), anchors)
        return gradient


class _LogitBlocks:
    """Writes the logits of both sides, one block of anchors at a time."""

    def __init__(
        self,
        embeddings: tuple[Tensor, Tensor],
        banks: tuple[Tensor, Tensor],
        temperatures: tuple[float, float],
        self_mask: tuple[Tensor, Tensor] | None,
    ) -> None:
        B, K, device = len(embeddings[0]), len(banks[0]), banks[0].device
        self.dtype = torch.promote_types(torch.float32, banks[0].dtype)
        self.num_per_block = n = _num_per_block(B, K, device)
        self.bounds = [(start, min(start + n, K)) for start in range(0, K, n)]
        self.student_bank = _Bank(banks[1], n)
        if banks[0] is banks[1]:  # one read of the bank serves both sides
            self._banks, rows = [self.student_bank], [torch.cat(embeddings)]
        else:
            self._banks, rows = [_Bank(banks[0], n), self.student_bank], list(embeddings)
        self._rows = [row.to(self.student_bank.product_dtype) for row in rows]
        # One-element vectors: they widen a bfloat16 product, which a plain number would not.
        inverse = [[1 / temperature] for temperature in temperatures]
        self._inverse_temperature = torch.tensor(inverse, dtype=self.dtype, device=device)
        self._exclusion = _Exclusion(*self_mask, self.bounds) if self_mask else None

    def write(self, index: int, logits: Tensor) -> None:
        """Fill `logits` (2 x n x B) with the similarities to block `index` over temperature."""
        start, stop = self.bounds[index]
        products = [
            similarities(bank.block(start, stop), rows)
            for bank, rows in zip(self._banks, self._rows, strict=True)
        ]
        sides = [side for product in products for side in product.split(logits.shape[2], 1)]
        for side, inverse, output in zip(sides, self._inverse_temperature, logits, strict=True):
            torch.mul(side, inverse, out=output)
        if self._exclusion is not None:
            self._exclusion.apply(index, logits)


class _Bank:
    """Reads a bank (K x D) block by block, float16 as float32."""

    def __init__(self, anchors: Tensor, num_per_block: int) -> None:
        self._anchors, self.width = anchors, anchors.shape[1]
        self._wide: Tensor | None = None
        self.product_dtype = anchors.dtype
        if anchors.dtype == torch.float16:
            self.product_dtype = torch.float32
            self._wide = anchors.new_empty(num_per_block, anchors.shape[1], dtype=torch.float32)

    def block(self, start: int, stop: int) -> Tensor:
        anchors = self._anchors[start:stop]
        return anchors if self._wide is None else self._wide[: stop - start].copy_(anchors)


class _Exclusion:
    """Excludes the anchors of a row's own image, usually few."""

    def __init__(
        self, image_index: Tensor, anchor_index: Tensor, bounds: list[tuple[int, int]]
    ) -> None:
        images = image_index.sort().values
        nearest = torch.searchsorted(images, anchor_index).clamp_(max=len(images) - 1)
        is_own = (images[nearest] == anchor_index) & (anchor_index >= 0)
        # The only synchronization with the device.
        positions = is_own.nonzero().flatten()
        edges = torch.tensor([*(start for start, _ in bounds), len(anchor_index)])
        cuts = torch.searchsorted(positions.cpu(), edges).tolist()
        self._image_index = image_index
        self._anchor_index = anchor_index
        self._positions = [positions[a:b] for a, b in itertools.pairwise(cuts)]
        self._starts = [start for start, _ in bounds]

    def apply(self, index: int, logits: Tensor) -> None:
        """Overwrite the excluded entries of block `index` in `logits` (2 x n x B)."""
        positions = self._positions[index]
        if len(positions) == 0:
            return
        excluded = self._anchor_index[positions][:, None] == self._image_index
        positions = positions - self._starts[index]
        logits[:, positions] = logits[:, positions].masked_fill_(excluded, _EXCLUDED)


def _num_per_block(B: int, K: int, device: torch.device) -> int:
    wanted = _LOGITS_PER_BLOCK.get(device.type, _LOGITS_PER_BLOCK["cuda"]) // (2 * B)
    return min(K, max(512, wanted)) // NUM_IMAGES * NUM_IMAGES or K


def _leading(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View the first entries of a flat buffer as a contiguous tensor of `shape`."""
    return buffer[: math.prod(shape)].view(shape)


def _record(num_entries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized flat buffer.

    A CPU thread reuses its largest one: page faults of new memory cost more than the arithmetic. On
    a GPU the caching allocator does that.
    """
    if device.type != "cpu":
        return torch.empty(num_entries, dtype=dtype, device=device)
    num_bytes = num_entries * dtype.itemsize
    record: Tensor | None = getattr(_kept, "record", None)
    if record is None or len(record) < num_bytes:
        record = _kept.record = None  # freed first
        with torch.inference_mode(False):  # it may be used outside of that mode later
            record = _kept.record = torch.empty(num_bytes, dtype=torch.uint8)
    return record[:num_bytes].view(dtype)
