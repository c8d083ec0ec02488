"""Students by name, built with random weights or from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.errors import DistillError
from distill.libraries import library_spec
from distill.networks import EmbeddingNetwork, InputSpec, NetworkSpec, build_network
from distill.registry import Registry
from distill.weights import load_weights, read_description
from students import alexnet, mobilenet, resnet

STUDENTS: Registry[NetworkSpec] = Registry(
    "student", remedy="timm:NAME and torchvision:NAME work too"
)
for _spec in (*alexnet.SPECS, *resnet.SPECS, *mobilenet.SPECS):
    STUDENTS.add(_spec.name, _spec)


def student_spec(name: str) -> NetworkSpec:
    """Describe the student called `name`.

    Raises:
        UnknownNameError: When neither the registry, timm nor torchvision knows it.
    """
    return library_spec(name) or STUDENTS.get(name)


def build_student(
    name: str,
    *,
    image_size: int | None = None,
    crop_fraction: float = 0.875,
    weights: Path | None = None,
) -> EmbeddingNetwork:
    """Build a student that is to be trained.

    Args:
        name: `alexnet`, `resnet18`, `resnet50`, `mobilenetv2`, `timm:NAME` or `torchvision:NAME`.
        image_size: Side of its input in pixels; below 64, ResNets get a small-image stem.
        crop_fraction: Share of the image's side that its evaluation view keeps.
        weights: File to start from; None starts from random weights (torch's global seed).

    Returns:
        The network in train mode, on the CPU.

    Raises:
        DistillError: Unknown name, an image too small, or weights that do not fit.
    """
    spec = student_spec(name)
    spec = replace(spec, input=replace(spec.input, crop_fraction=crop_fraction))
    network = build_network(spec, image_size=image_size)
    if weights is not None:
        load_weights(network, weights)
    return network.train()


def load_student(path: Path) -> EmbeddingNetwork:
    """Rebuild a trained student from `student.safetensors` or the run directory that holds it.

    Raises:
        DistillError: When there is no such file or it was not written by this toolkit.
    """
    file = path / "student.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise DistillError(
            f"{path} holds no student.safetensors; it is written when a run ends: finish the run "
            f"with --output {path} --resume, or name another directory"
        )
    if not file.exists():
        raise DistillError(f"there is no run directory or weights file at {path}")
    description = read_description(file)
    if description is None:
        raise DistillError(
            f"{file} does not say which network it holds (only a student.safetensors of this "
            "toolkit does); name the architecture with --student"
        )
    spec = student_spec(description["network"])
    stored = description["input"]
    stored["mean"], stored["std"] = tuple(stored["mean"]), tuple(stored["std"])
    network = build_network(replace(spec, input=InputSpec(**stored)))
    load_weights(network, file)
    return network.eval()
