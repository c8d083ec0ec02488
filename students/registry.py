"""Students by name, built with random weights or from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.models.libraries import library_spec
from distill.models.networks import EmbeddingNetwork, NetworkSpec, build_network
from distill.models.weights import load_weights
from distill.registry import Registry

STUDENTS: Registry[NetworkSpec] = Registry(
    "student", remedy="timm:NAME and torchvision:NAME work too"
)


def register_student(spec: NetworkSpec) -> None:
    """Register a student by its name."""
    STUDENTS.add(spec.name, spec)


def student_spec(name: str) -> NetworkSpec:
    """Return the spec of a student; `UnknownNameError` if there is none."""
    return library_spec(name) or STUDENTS.get(name)


def build_student(
    name: str,
    *,
    image_size: int | None = None,
    crop_fraction: float | None = None,
    weights: Path | None = None,
) -> EmbeddingNetwork:
    """Build a student for training.

    Args:
        name: `alexnet`, `resnet18`, `resnet50`, `mobilenetv2`, `timm:NAME` or `torchvision:NAME`.
        image_size: Side of its input in pixels; below 64, ResNets get a small-image stem.
        crop_fraction: Side of the evaluation crop as a fraction of the image's side, in (0, 1];
            None: as published for the network.
        weights: File of initial weights; None: random weights (torch's global seed).

    Returns:
        The network in train mode, on the CPU.

    Raises:
        DistillError: Unknown name, an image side that is too small, or weights that do not match.

    Example:
        >>> from students.registry import build_student
        >>> build_student("resnet18", image_size=32).embedding_dim
        512
    """
    spec = student_spec(name)
    if crop_fraction is not None:
        spec = replace(spec, input=replace(spec.input, crop_fraction=crop_fraction))
    network = build_network(spec, image_size=image_size)
    if weights is not None:
        load_weights(network, weights)
    return network.train()
