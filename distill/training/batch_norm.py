"""BatchNorm over the global batch when several ranks train one network.

Source: Ioffe and Szegedy, ICML 2015; the exchange between ranks as in PyTorch's SyncBatchNorm,
which exists for CUDA only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from distill import distributed
from distill.errors import DistillError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm of `module` see the batches of all ranks.

    Parameters and buffers stay the same objects under the same names, so that an optimizer, a
    checkpoint or a state dict made before remains valid. timm's layers that join BatchNorm and an
    activation keep the activation.

    Args:
        module: Changed in place, unless it is a BatchNorm itself.
        device: Where it will run; PyTorch's SyncBatchNorm for CUDA, `GlobalBatchNorm` for a CPU.

    Returns:
        `module`, or what replaces it when it is a BatchNorm; untouched with one rank.

    Raises:
        DistillError: For a kind of BatchNorm that does more than PyTorch's and timm's.
    """
    if distributed.world_size() == 1:
        return module
    if isinstance(module, _BatchNorm):
        return _synchronized(module, device)
    for name, child in module.named_children():
        module.add_module(name, synchronize_batch_norm(child, device))
    return module


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of all ranks' batches together.

    Every rank contributes the number, mean and squared deviations of its values per channel, taken
    in float32 over two passes and joined in float64 (Chan, Golub and LeVeque, Algorithms for
    Computing the Sample Variance, 1983), so that no difference of large sums is formed and local
    batches may differ in size. One exchange of 3 C numbers forward, one of 2 C backward.

    Input and output are (B, C, ...) in any floating dtype and memory format; a rank may bring no
    rows. Parameters get the local share of their gradient, as from PyTorch's SyncBatchNorm:
    DistributedDataParallel averages it over the ranks.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize per channel; in eval mode as any BatchNorm.

        Raises:
            DistillError: When all ranks together bring one value per channel.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count, mean, variance = _global_statistics(input)
        if self.track_running_stats:
            self._follow(count, mean, variance)
        dtype = _wide(input).dtype
        statistics = (count, mean.to(dtype), variance.to(dtype), self.eps)
        return _Normalize.apply(input, self.weight, self.bias, statistics)

    @torch.no_grad()
    def _follow(self, count: int, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise DistillError(f"BatchNorm got an input of {input.ndim} dimensions, it needs 2")


class _GlobalBatchNormAct(GlobalBatchNorm):
    """For timm's BatchNormAct2d: an activation follows."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance depend on x.

    With x' = (x - mean) / sqrt(variance + eps) and N values per channel on all ranks together,

        dL/dx = weight / sqrt(variance + eps) (dL/dy - sum(dL/dy) / N - x' sum(dL/dy x') / N),

    the sums over all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: tuple[int, Tensor, Tensor, float],
    ) -> Tensor:
        ctx.count, mean, variance, eps = statistics
        ctx.save_for_backward(input, weight, mean, torch.rsqrt(variance + eps))
        return F.batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse_std = ctx.saved_tensors
        gradient = _wide(upstream)
        shape = (1, -1, *[1] * (input.ndim - 2))
        normalized = (_wide(input) - mean.view(shape)) * inverse_std.view(shape)
        axes = _all_but_channels(input)
        of_weight, of_bias = (gradient * normalized).sum(axes), gradient.sum(axes)
        sums = distributed.all_reduce_sum(torch.stack([of_weight, of_bias]))
        along, constant = (sums / ctx.count).view(2, *shape).unbind()
        scale = inverse_std if weight is None else inverse_std * weight
        of_input = (gradient - constant - normalized * along) * scale.view(shape)
        gradients = (of_input, of_weight, of_bias, None)  # autograd narrows them as needed
        return tuple(
            g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True)
        )


@torch.no_grad()
def _global_statistics(input: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return N and, (C,) in float64, mean and biased variance of (B, C, ...) over all ranks."""
    counts, means, squares = distributed.all_gather(_local_statistics(input)).unbind(1)
    count = int(counts[:, 0].sum())
    if count < 2:
        raise DistillError(
            f"BatchNorm got {count} value per channel on all ranks together, it needs 2; raise "
            "--batch-size"
        )
    mean = (counts * means).sum(0) / count
    squares = squares.sum(0) + (counts * (means - mean).square()).sum(0)
    return count, mean, squares / count


def _local_statistics(input: Tensor) -> Tensor:
    """Return count, mean and sum of squared deviations of this rank's rows, (1, 3, C) in float64.

    The values are centered at their rounded mean; what is left of the mean corrects both.
    """
    values, axes = _wide(input), _all_but_channels(input)
    count = input.numel() // input.shape[1]
    center = values.sum(axes, keepdim=True) / max(1, count)
    centered = values - center
    left = centered.sum(axes).double() / max(1, count)
    squares = centered.square_().sum(axes).double() - count * left.square()
    mean = center.flatten().double() + left
    return torch.stack([torch.full_like(mean, count), mean, squares]).unsqueeze(0)


def _synchronized(layer: _BatchNorm, device: torch.device) -> nn.Module:
    if isinstance(layer, (GlobalBatchNorm, nn.SyncBatchNorm)):
        return layer
    has_activation = _is_timm_batch_norm_act(layer)
    if type(layer) not in _PLAIN and not has_activation:
        raise DistillError(
            f"{type(layer).__name__} cannot be synchronized between ranks; allowed: BatchNorm1d, "
            "BatchNorm2d, BatchNorm3d and timm's BatchNormAct2d; train it in one process"
        )
    if device.type != "cuda":
        return _globalized(layer, _GlobalBatchNormAct if has_activation else GlobalBatchNorm)
    if not has_activation:
        return nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(layer)


def _globalized(layer: _BatchNorm, kind: type[GlobalBatchNorm]) -> GlobalBatchNorm:
    new = kind(
        layer.num_features,
        layer.eps,
        layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    new._parameters.update(layer._parameters)
    new._buffers.update(layer._buffers)
    new._modules.update(layer._modules)  # timm's drop and act
    return new.train(layer.training)


def _is_timm_batch_norm_act(layer: _BatchNorm) -> bool:
    return any(
        kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")
        for kind in type(layer).__mro__
    )


def _all_but_channels(input: Tensor) -> list[int]:
    return [axis for axis in range(input.ndim) if axis != 1]


def _wide(tensor: Tensor) -> Tensor:
    """Return float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
