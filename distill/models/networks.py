"""Convolutions of few pixels as matrix products: several times faster to train on a CPU.

Small students see small images, and their last layers maps of a few pixels. The library's
convolutions are laid out for large maps: at 2 x 2 pixels and 512 channels forward and backward take
four times as long as the same sum written as one product (`tools/bench_few_pixels.py`).

Shapes: B batch, C and O channels, H x W pixels in, P x Q pixels out, K x L kernel.

Embedding networks: what a teacher and a student have in common.

An embedding network takes images as they come from the loader and returns one vector per image. The
normalization of its input belongs to it, so that a teacher and a student that were trained on
differently normalized pixels can look at the same image.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.download import Source
from distill.models.layout import Layout, PyTorchLayout

MAX_PIXELS = 4  # P Q; more take as long, or longer, as products
MAX_PIXELS_OF_LARGE = 9  # for kernels that no core's cache holds
LARGE = 2**20  # weights of a kernel


class FewPixelConv2d(nn.Conv2d):
    """`nn.Conv2d`, as a matrix product where gradients are wanted of few pixels on a CPU.

    Without gradients it is PyTorch's convolution: what is exported or measured stays what it was.
    """

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
        """Lay the pixels that each tap of the kernel sees side by side; one product does the rest.

        Taps that see nothing but padding are left out: of a 3 x 3 kernel on one pixel, eight.
        """
        (top, bottom), (left, right) = (
            self._used_taps(x.shape[2 + axis], out, axis)
            for axis, out in enumerate((rows, columns))
        )
        above, beside = (int(padding) for padding in self.padding)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, beside, beside, above, above))
        down, across = self.stride
        seen = [
            padded[
                :, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across
            ]
            for i in range(top, bottom)
            for j in range(left, right)
        ]
        kernel = self.weight[:, :, top:bottom, left:right].permute(0, 2, 3, 1)
        patches = torch.cat(seen, dim=-1).flatten(0, 2)  # B P Q x taps C
        product = F.linear(patches, kernel.flatten(1), self.bias)
        return product.unflatten(0, (len(x), rows, columns)).permute(0, 3, 1, 2)

    def _used_taps(self, size: int, out: int, axis: int) -> tuple[int, int]:
        """Return the first tap of an axis that sees a pixel, and the one after the last."""
        padding, stride = int(self.padding[axis]), self.stride[axis]
        return (
            max(0, padding - stride * (out - 1)),
            min(self.kernel_size[axis], size + padding),
        )


def patch_small_convs(network: nn.Module) -> None:
    """Let the plain convolutions of a network, in place, be products where that is faster."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = FewPixelConv2d


def _is_plain(module: nn.Conv2d) -> bool:
    return (
        module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.kernel_size != (1, 1)
    )


Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see: side in pixels, per-channel statistics, evaluation crop."""

    image_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Publication:
    """What is known about a published ResNet.

    Attributes:
        depth: Layers.
        width: Factor of every stage's width.
        linear_accuracy: Top-1 accuracy of a linear classifier on ImageNet, as a fraction of 1, as
            its authors state it.
        paper: arXiv number.
        license: SPDX name of the weights' license.
        source: Where the file lies.
        is_fetchable: False where the link is known to lead to something else.
    """

    depth: int
    width: int
    linear_accuracy: float
    paper: str
    license: str
    source: Source
    is_fetchable: bool = True

    @property
    def embedding_dim(self) -> int:
        """Width of the pooled last stage."""
        return round(2048 * self.width)


@dataclass(frozen=True)
class NetworkSpec:
    """A network that can be built by name.

    Attributes:
        name: As the user types it.
        build: Takes the image side in pixels, returns the bare backbone, B x 3 x S x S -> B x D.
        input: The input it was (or will be) trained with.
        min_image_size: Smallest side that the layers accept.
        layout: How its published file names the weights, and what else lies in it.
        pretrained: Fetches a library model's pretrained weights; None where only a file will do.
        weights_file: The file itself, for a network that is shipped with its weights.
        needs_weights: False for a network that has none.
        publication: Who published it, where and under which terms; None for what nobody did.
        published_projection_dim: Width of the linear layer that the published recipe trains this
            student through; None for none.
        summary: One line for `distill list`.
    """

    name: str
    build: Callable[[int], nn.Module]
    input: InputSpec = field(default_factory=InputSpec)
    min_image_size: int = 1
    layout: Layout = field(default_factory=PyTorchLayout)
    pretrained: Callable[[nn.Module], None] | None = None
    weights_file: Path | None = None
    needs_weights: bool = True
    publication: Publication | None = None
    published_projection_dim: int | None = None
    summary: str = ""


class EmbeddingNetwork(nn.Module):
    """A backbone with its own input normalization.

    Args:
        backbone: Maps normalized float images (B, 3, S, S) to (B, D), or (B, D, 1, 1).
        spec: Its description; `spec.input` holds mean, standard deviation and side.

    Raises:
        DistillError: When the backbone cannot take images of `spec.input.image_size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: NetworkSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.input.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.input.std).view(3, 1, 1), persistent=False)
        self.embedding_dim = self._probe_embedding_dim()

    @property
    def input(self) -> InputSpec:
        """The input that this network wants."""
        return self.spec.input

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1], not normalized.

        Returns:
            Embeddings (B, D), float32, not L2-normalized.
        """
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.backbone(pixels).float().flatten(1)

    def _probe_embedding_dim(self) -> int:
        side, was_training = self.input.image_size, self.training
        self.eval()
        try:
            with torch.no_grad():
                output = self(torch.zeros(1, 3, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DistillError(
                f"{self.spec.name} cannot take images of {side} x {side} pixels ({reason}); "
                "choose another size with --image-size (student) or --teacher-image-size"
            ) from error
        self.train(was_training)
        return output.shape[1]


def build_network(spec: NetworkSpec, *, image_size: int | None = None) -> EmbeddingNetwork:
    """Build the network that `spec` describes, with random weights.

    Args:
        spec: The description.
        image_size: Side of its input in pixels; None takes the side of `spec.input`.

    Raises:
        DistillError: When the side is below `spec.min_image_size`.
    """
    side = image_size or spec.input.image_size
    if side < spec.min_image_size:
        raise DistillError(
            f"{spec.name} needs images of at least {spec.min_image_size} px, {side} px was asked "
            f"for; use --image-size {spec.min_image_size} or larger"
        )
    sized = replace(spec, input=replace(spec.input, image_size=side))
    return EmbeddingNetwork(spec.build(side), sized)


def prepare_for_device(network: EmbeddingNetwork, device: torch.device) -> EmbeddingNetwork:
    """Move `network` to `device`, its convolutions in the form that they run fastest in."""
    network.to(device)
    if device.type == "cpu":
        patch_small_convs(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def num_parameters(network: nn.Module) -> int:
    """Count the trainable and frozen scalars of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())


def spec_metadata(spec: NetworkSpec) -> dict[str, Any]:
    """Return what must travel with weights so that `spec` can be rebuilt: name and input."""
    return {"network": spec.name, "input": vars(spec.input)}
