"""Weights under torchvision's or timm's names, for programs that do not have this toolkit.

A plain file holds the backbone alone: what reads it normalizes pixels by itself. It is loaded with
`strict=True` into the library's own model, which the description below changes by a line or two.
Networks that neither library has (other widths, TensorFlow's padding) have no plain file.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.exports.network import Embed
from distill.models.libraries import AUXILIARY_HEADS, remove_auxiliary_heads
from distill.models.networks import EmbeddingNetwork, InputSpec

_SMALL_STEM = (
    "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
)
_FC7 = 6  # modules of torchvision's classifier of AlexNet up to the ReLU of fc7
_BACKBONE = re.compile(r"backbone:(resnet\d+)(-small)?")  # of width 1: wider ones are SimCLR's


@dataclass(frozen=True)
class LibraryModel:
    """A model of torchvision or timm that a network's weights fit.

    Attributes:
        library: `torchvision` or `timm`.
        build: Makes it, with random weights.
        code: The lines of Python that make `model` in the same way, after the imports.
    """

    library: str
    build: Callable[[], nn.Module]
    code: tuple[str, ...]


def library_model(network: EmbeddingNetwork) -> LibraryModel | None:
    """Return the library's model that the backbone of `network` is, None when there is none."""
    name = network.spec.name
    if name.startswith("timm:"):
        return _timm_model(name.removeprefix("timm:"))
    if name == "alexnet":
        return _alexnet()
    if name == "mobilenetv2":
        return _torchvision_model("mobilenet_v2", without="classifier")
    if name.startswith("torchvision:"):
        known = name.removeprefix("torchvision:")
        return _torchvision_model(known, without=_last_linear(known))
    backbone = _BACKBONE.fullmatch(name)
    architecture = backbone[1] if backbone else name
    if backbone or name in ("resnet18", "resnet50"):
        is_small = network.get_submodule("backbone.conv1").kernel_size == (3, 3)
        return _torchvision_model(architecture, without="fc", is_small=is_small)
    return None


def write_plain(network: EmbeddingNetwork, path: Path) -> None:
    """Write the backbone's weights under the library's names, with nothing else but the format."""
    weights = {name: w.detach().contiguous() for name, w in network.backbone.state_dict().items()}
    # Not save_file, whose files only their owner can read.
    path.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))


def run_plain(path: Path, model: LibraryModel, spec: InputSpec) -> Embed:
    """Return what the library's model computes with the weights of a plain file.

    Args:
        path: The file, read with `strict=True`.
        model: What it is read into.
        spec: Mean and standard deviation of the pixels.
    """
    built = model.build()
    built.load_state_dict(safetensors.torch.load_file(path), strict=True)
    built.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        return built((pixels - mean) / std).flatten(1)

    return embed


def _timm_model(name: str) -> LibraryModel:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=0)

    return LibraryModel("timm", build, (f'model = timm.create_model("{name}", num_classes=0)',))


def _alexnet() -> LibraryModel:
    def build() -> nn.Module:
        from torchvision import models

        model = models.alexnet()
        model.classifier = model.classifier[:_FC7]
        return model

    lines = (
        "model = torchvision.models.alexnet()",
        f"model.classifier = model.classifier[:{_FC7}]",
    )
    return LibraryModel("torchvision", build, lines)


def _torchvision_model(name: str, *, without: str, is_small: bool = False) -> LibraryModel:
    def build() -> nn.Module:
        from torchvision import models

        model = models.get_model(name)
        remove_auxiliary_heads(model)
        model.set_submodule(without, nn.Identity())
        if is_small:
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        return model

    lines = [
        f'model = torchvision.models.get_model("{name}")',
        *(f"model.{head} = None" for head in _auxiliary_heads(name)),
        f'model.set_submodule("{without}", torch.nn.Identity())',
        *(_SMALL_STEM if is_small else ()),
    ]
    return LibraryModel("torchvision", build, tuple(lines))


def _auxiliary_heads(name: str) -> list[str]:
    """Return the heads that were taken off, see `libraries.remove_auxiliary_heads`."""
    from torchvision import models

    model = models.get_model(name)
    return [head for head in AUXILIARY_HEADS if getattr(model, head, None) is not None]


def _last_linear(name: str) -> str:
    """Return the path of the classifier that was taken off, see `libraries.remove_classifier`."""
    from torchvision import models

    modules = models.get_model(name).named_modules()
    return [path for path, module in modules if isinstance(module, nn.Linear)][-1]
