"""Embedding networks: what a teacher and a student have in common.

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
from torch import Tensor, nn

from distill.download import Source
from distill.errors import DistillError
from distill.few_pixel_convolution import quicken
from distill.layout import Layout, PyTorchLayout

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
        licence: SPDX name of the weights' licence.
        source: Where the file lies.
        is_fetchable: False where the link is known to lead to something else.
    """

    depth: int
    width: int
    linear_accuracy: float
    paper: str
    licence: str
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


def place(network: EmbeddingNetwork, device: torch.device) -> EmbeddingNetwork:
    """Move `network` to `device`, its convolutions in the form that they run fastest in."""
    network.to(device)
    if device.type == "cpu":
        quicken(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def num_parameters(network: nn.Module) -> int:
    """Count the trainable and frozen scalars of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())


def spec_metadata(spec: NetworkSpec) -> dict[str, Any]:
    """Return what must travel with weights so that `spec` can be rebuilt: name and input."""
    return {"network": spec.name, "input": vars(spec.input)}
