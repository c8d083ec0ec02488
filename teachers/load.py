"""Loads a frozen teacher by name, from a run directory or from a file.

A teacher stays in evaluation mode despite `train()`, has no gradients, is never passed to an
optimizer and never saved in a checkpoint. `load_trained` loads the results of a run (a student or a
pre-trained backbone), which can be teachers, too.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import filelock
from torch import nn

from distill.errors import DistillError
from distill.files import cache_folder
from distill.models.checkpoints.archives import is_archive
from distill.models.checkpoints.pytorch import is_zip_of_pytorch
from distill.models.checkpoints.safetensors import SUFFIX
from distill.models.download import fetch, mismatch
from distill.models.networks import EmbeddingNetwork, NetworkSpec, build_network
from distill.models.weights import load_weights, read_description, rebuild_network, save_network
from students.registry import student_spec
from teachers.registry import NEEDS_NO_DOWNLOAD, TEACHERS, teacher_spec
from teachers.resnet import BACKBONES, PREFIX

logger = logging.getLogger("distill.teachers")

FILES = ("student.safetensors", "backbone.safetensors")  # of a finished run
_INSTEAD = (
    "pass the weights with --teacher-weights FILE, or use --teacher "
    f"{NEEDS_NO_DOWNLOAD}, which needs no download"
)

Network = TypeVar("Network", bound=nn.Module)


def load_teacher(
    name: str, *, weights: Path | None = None, image_size: int | None = None
) -> EmbeddingNetwork:
    """Load a frozen teacher, downloading its published weights if necessary.

    Args:
        name: A registry name, `timm:NAME`, `torchvision:NAME`, a run directory, or a file of
            `distill convert` or a run.
        weights: File to read instead of the published weights, see `open_checkpoint`.
        image_size: Side of its input in pixels; None: as in its training.

    Returns:
        The frozen network, on the CPU.

    Raises:
        DistillError: Unknown name, weights that are missing, cannot be downloaded or do not match,
            or an image side that is too small.

    Example:
        >>> from teachers.load import load_teacher
        >>> load_teacher("digits-cbyol").embedding_dim
        128
    """
    path = Path(name)
    if (path.suffix == SUFFIX and path.is_file()) or any((path / file).exists() for file in FILES):
        if weights is not None:
            raise DistillError(f"{path} brings its own weights; leave out --teacher-weights")
        if image_size is not None and path.is_dir():
            raise DistillError(
                f"{path} is a run directory and brings its own image size; leave out "
                "--teacher-image-size"
            )
        return freeze(load_trained(path, image_size=image_size))
    spec = teacher_spec(name)
    if weights is not None:
        _check_given_weights(spec, weights)
    file = weights or spec.weights_file
    if file is None and spec.publication is not None:
        file = _published_file(spec)
    network = build_network(spec, image_size=image_size)
    if file is not None:
        load_weights(network, file)
    elif spec.pretrained is not None:
        spec.pretrained(network.backbone)
    return freeze(network)


def freeze(network: Network) -> Network:
    """Freeze `network` in place: no gradients, and evaluation mode that `train()` cannot change."""
    network.eval().requires_grad_(False)
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    return network


def load_trained(
    path: Path, *, module: nn.Module | None = None, image_size: int | None = None
) -> EmbeddingNetwork:
    """Load a student, a pre-trained backbone or a converted teacher from its file or run directory.

    Args:
        path: The file or the run directory.
        module: The user's own module that was trained, to load the weights into; None for a network
            that is built by name.
        image_size: Side of its input in pixels; None: as in the file.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        DistillError: The file is missing, was not written by this toolkit, or needs `module`.
    """
    file = path
    if path.is_dir():
        existing = [path / name for name in FILES if (path / name).exists()]
        if not existing:
            raise DistillError(
                f"{path} holds no {' or '.join(FILES)}; it is written when a run ends: finish the "
                f"run with --output {path} --resume, or name another directory"
            )
        file = existing[0]
    return rebuild_network(file, _any_spec, module=module, image_size=image_size)


def _any_spec(name: str) -> NetworkSpec:
    if name.startswith(PREFIX):
        return BACKBONES.get(name.removeprefix(PREFIX))
    return TEACHERS.get(name) if name in TEACHERS else student_spec(name)


def _check_given_weights(spec: NetworkSpec, weights: Path) -> None:
    """Refuse a file that names another network; log if it is not the published file."""
    description = read_description(weights)
    holds = description.get("network") if isinstance(description, dict) else None
    if holds not in (None, spec.name):
        raise DistillError(
            f"{weights} holds {holds}, not {spec.name}; use --teacher {weights}, which brings its "
            "own input"
        )
    source = spec.publication.source if spec.publication else None
    if source is None or source.checksum is None or not weights.is_file():
        return
    # PyTorch's older format has no checksum, so that damage could go unnoticed.
    if weights.suffix != SUFFIX and (difference := mismatch(weights, source)):
        logger.info(f"{weights} is not the published file ({difference}); it is used anyway")


def _published_file(spec: NetworkSpec) -> Path:
    """Download the file of a published network; an archive is converted to safetensors once."""
    published = spec.publication
    assert published is not None
    if not published.is_fetchable:
        raise DistillError(
            f"{spec.name} is not downloaded from {published.source.url}: "
            f"{published.source.caveat}; "
            f"{_INSTEAD}"
        )
    folder = cache_folder() / "teachers" / spec.name.partition(":")[0]
    converted = folder / f"{spec.name.replace(':', '-')}.safetensors"
    if converted.exists():
        return converted
    file = fetch(published.source, folder, instead=_INSTEAD)
    if not is_archive(file) or is_zip_of_pytorch(file):
        return file
    with filelock.FileLock(f"{converted}.lock"):
        if not converted.exists():  # else another process has converted it
            logger.info(f"converting {file.name} to {converted}, once")
            network = build_network(spec)
            load_weights(network, file)
            save_network(network, converted)
    return converted
