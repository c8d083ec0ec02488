"""Backbones of pre-training by name: `resnet50`, `resnet50x2`, `resnet18x0.25-small`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from distill.errors import DistillError, UnknownNameError
from distill.networks import EmbeddingNetwork, NetworkSpec, build_network
from distill.registry import Registry
from teachers.resnet import DEPTHS, STEMS, WIDTHS, ResNet

PREFIX = "backbone:"  # tells a backbone's weights from a student's of the same name
ARCHITECTURES = tuple(f"resnet{depth}" for depth in DEPTHS)
BACKBONES: Registry[NetworkSpec] = Registry("backbone")


def backbone_name(arch: str, *, width: float = 1.0, stem: str = "imagenet") -> str:
    """Return the name of a backbone from its parts.

    Raises:
        UnknownNameError: An unknown architecture, with the nearest.
        DistillError: A width or stem that is not offered.
    """
    if arch not in ARCHITECTURES:
        raise UnknownNameError("architecture", arch, ARCHITECTURES, "width is given by --width")
    if width not in WIDTHS:
        widths = ", ".join(f"{allowed:g}" for allowed in WIDTHS)
        raise DistillError(f"--width is {width:g}, it must be one of {widths}")
    times = "" if width == 1 else f"x{width:g}"
    return f"{arch}{times}" + ("-small" if stem == "small" else "")


def build_backbone(name: str, *, image_size: int, crop_fraction: float = 0.875) -> EmbeddingNetwork:
    """Build a backbone with random weights (torch's global seed), in train mode, on the CPU.

    Args:
        name: As `backbone_name` returns it.
        image_size: Side of its input in pixels.
        crop_fraction: Share of the image's side that its evaluation view keeps.

    Raises:
        DistillError: Unknown name or an unusable image side.
    """
    spec = BACKBONES.get(name)
    spec = replace(spec, input=replace(spec.input, crop_fraction=crop_fraction))
    return build_network(spec, image_size=image_size).train()


def build_resnet_of(image_size: int, *, depth: int, width: float, stem: str) -> nn.Module:
    """Build a `ResNet`; the image side decides nothing, the stem was chosen by name."""
    return ResNet(depth, width=width, stem=stem)


for _depth in DEPTHS:
    for _width in WIDTHS:
        for _stem in STEMS:
            _name = backbone_name(f"resnet{_depth}", width=_width, stem=_stem)
            _builder = partial(build_resnet_of, depth=_depth, width=_width, stem=_stem)
            BACKBONES.add(_name, NetworkSpec(name=PREFIX + _name, build=_builder))
