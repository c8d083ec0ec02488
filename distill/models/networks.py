"""Embedding networks: the common interface of teachers and students.

An `EmbeddingNetwork` takes images from the loader and returns one vector per image. It normalizes
its input, so that a teacher and a student with different normalizations can take the same images.
It is built by name from a `NetworkSpec` (`build_network`) or from any `nn.Module` (`wrap_module`).

Shapes: B batch, S image side in pixels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from distill.config import as_options
from distill.errors import DistillError
from distill.models.download import Source
from distill.models.layout import Layout, PyTorchLayout
from distill.models.small_convs import patch_small_convs

Interpolation = Literal["bilinear", "bicubic"]
Positive = Annotated[float, Gt(0)]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODULE_PREFIX = "module:"  # of the name of a user's own module


@dataclass(frozen=True)
class InputSpec:
    """The input of a network: its size, its normalization and its evaluation crop."""

    image_size: Annotated[int, Ge(1)] = 224  # side in pixels, S
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of images in [0, 1]
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    # Side of the center crop as a fraction of the resized image's side.
    crop_fraction: Annotated[float, Gt(0), Le(1)] = 0.875
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Publication:
    """The architecture, the paper and the download of a published ResNet."""

    depth: int
    width: int  # factor of every stage's width
    linear_accuracy: float  # published top-1 accuracy on ImageNet, in [0, 1]
    paper: str  # arXiv number
    license: str  # SPDX name of the weights' license
    source: Source
    is_fetchable: bool = True  # False if the link leads to another file

    @property
    def embedding_dim(self) -> int:
        """Width of the pooled last stage."""
        return round(2048 * self.width)


@dataclass(frozen=True)
class NetworkSpec:
    """A network that can be built by name."""

    name: str
    build: Callable[[int], nn.Module]  # image side -> backbone, (B, 3, S, S) -> (B, D)
    input: InputSpec = field(default_factory=InputSpec)
    min_image_size: int = 1
    layout: Layout = field(default_factory=PyTorchLayout)  # of the published weights file
    pretrained: Callable[[nn.Module], None] | None = None  # loads a library model's weights
    weights_file: Path | None = None  # of a network that is shipped with its weights
    publication: Publication | None = None
    published_projection_dim: int | None = None  # of the linear layer in the published recipe
    summary: str = ""  # one line for `distill list`


class EmbeddingNetwork(nn.Module):
    """A backbone with its input normalization.

    Args:
        backbone: Maps normalized float images (B, 3, S, S) to (B, D), or (B, D, 1, 1).
        spec: Its description; `spec.input` has mean, standard deviation and side.

    Attributes:
        embedding_dim: D.

    Raises:
        DistillError: The backbone cannot take images of `spec.input.image_size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: NetworkSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        device = next((weight.device for weight in backbone.parameters()), None)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(spec.input, name), device=device).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.embedding_dim = self._probe_embedding_dim()

    @property
    def input(self) -> InputSpec:
        """The expected input."""
        return self.spec.input

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1], not normalized.

        Returns:
            Embeddings (B, D), float32, not L2-normalized.
        """
        return self.backbone(self.normalized(images)).float().flatten(1)

    def normalized(self, images: Tensor) -> Tensor:
        """Return the backbone's input: float32, normalized, channels last."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _probe_embedding_dim(self) -> int:
        side = self.input.image_size
        images = torch.zeros(2, 3, side, side, device=self.mean.device)
        with evaluation_mode(self), torch.no_grad():
            try:
                output = self.backbone(self.normalized(images))
            except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                raise DistillError(
                    f"{self.spec.name} cannot take images of {side} x {side} pixels ({reason}); "
                    "choose another size with --image-size (student) or --teacher-image-size"
                ) from error
        if is_own_module(self.spec.name):
            _check_output(output, self.spec.name, images)
        return output.flatten(1).shape[1]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation mode, and restore the mode of each submodule at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def build_network(spec: NetworkSpec, *, image_size: int | None = None) -> EmbeddingNetwork:
    """Build the network that `spec` describes, with random weights.

    Args:
        spec: The description.
        image_size: Side of its input in pixels; None takes the side of `spec.input`.

    Raises:
        DistillError: The side is below `spec.min_image_size`.
    """
    side = image_size or spec.input.image_size
    if side < spec.min_image_size:
        raise DistillError(
            f"{spec.name} needs images of at least {spec.min_image_size} px, {side} px was given; "
            f"use --image-size {spec.min_image_size} or larger"
        )
    sized = replace(spec, input=replace(spec.input, image_size=side))
    return EmbeddingNetwork(spec.build(side), sized)


def wrap_module(
    module: nn.Module,
    *,
    image_size: int = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_fraction: float = 0.875,
    interpolation: Interpolation = "bilinear",
    name: str | None = None,
) -> EmbeddingNetwork:
    """Make a teacher or a student from any module that maps images (B, 3, S, S) to (B, D).

    The module is not copied: a student is trained in place, and a teacher is frozen in place.

    Args:
        module: Takes normalized float32 images, returns one float tensor (B, D) or (B, D, 1, 1).
        image_size: Side of its input in pixels, S, at least 1.
        mean: Subtracted from the three channels of an image in [0, 1].
        std: Divides them after that; each above 0.
        crop_fraction: Side of the center crop of the evaluation view as a fraction of the resized
            image's side, in (0, 1].
        interpolation: Of the resizing, "bilinear" or "bicubic".
        name: Name in logs and files; None: the name of its class. The prefix `module:` is added, so
            that it differs from the networks of the registries.

    Returns:
        The network, on the module's device and in its mode (train or eval).

    Raises:
        DistillError: The module cannot take such images, has another output, has weights on the
            meta device or not in float32, or an argument is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from distill.models.networks import wrap_module
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> network = wrap_module(module, image_size=32, name="tiny")
        >>> network.spec.name, network.embedding_dim
        ('module:tiny', 8)
        >>> network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 8])
    """
    if not isinstance(module, nn.Module) or isinstance(module, EmbeddingNetwork):
        remedy = "call it" if isinstance(module, type) else "pass a plain nn.Module"
        raise DistillError(f"{module!r:.200} is not a module to wrap; {remedy}")
    cls = type(module)
    options = {"image_size": image_size, "mean": mean, "std": std, "crop_fraction": crop_fraction}
    options["interpolation"] = interpolation
    spec = NetworkSpec(
        name=MODULE_PREFIX + (name or f"{cls.__module__}.{cls.__qualname__}"),
        build=_build_by_name,
        input=as_options(InputSpec, options, source="wrap_module"),
    )
    _check_weights(module, spec.name)
    return EmbeddingNetwork(module, spec)


def is_own_module(name: str) -> bool:
    """Return whether a name is of a user's own module."""
    return name.startswith(MODULE_PREFIX)


def _check_output(output: object, name: str, images: Tensor) -> None:
    """Raise `DistillError` unless the output is (B, D) or (B, D, 1, 1), B = 2."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if len(shape) in (2, 4) and shape[0] == len(images) and shape[2:] in ((), (1, 1)):
        return
    raise DistillError(
        f"{name} returns {_described(output)} for images of shape {tuple(images.shape)}, it must "
        "return one tensor (B, D): wrap it in a module that picks the embedding, or pool a feature "
        "map with nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten())"
    )


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output))}"
    number = f" of {len(output)}" if isinstance(output, tuple | list) else ""
    return f"a {type(output).__name__}{number}"


def _check_weights(module: nn.Module, name: str) -> None:
    for key, weight in module.state_dict().items():
        if not isinstance(weight, Tensor):
            raise DistillError(
                f"{name} has {key} in its state dict, which is not a tensor and cannot be saved; "
                "remove its get_extra_state"
            )
        if weight.is_meta:
            raise DistillError(
                f"{name} has {key} on the meta device, where tensors have no values; load the "
                "module's weights before wrapping it"
            )
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise DistillError(
                f"{name} has {key} in {str(weight.dtype).removeprefix('torch.')}; call "
                "module.float() first, and choose a lower precision with --precision"
            )


def _build_by_name(image_size: int) -> nn.Module:
    raise DistillError(
        "a user's own module cannot be built by name; build it in Python and pass the object"
    )


def prepare_for_device(network: EmbeddingNetwork, device: torch.device) -> EmbeddingNetwork:
    """Move `network` to `device`, with the fastest convolutions and memory format there."""
    network.to(device)
    if device.type == "cpu":
        patch_small_convs(network)
    return network.to(memory_format=torch.channels_last)


def num_parameters(network: nn.Module) -> int:
    """Count the trainable and frozen scalars of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())
