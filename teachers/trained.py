"""Networks that this toolkit trained, rebuilt from what their runs left behind."""

from __future__ import annotations

from pathlib import Path

from distill.checkpoints.safetensors_file import SUFFIX
from distill.errors import DistillError
from distill.networks import EmbeddingNetwork, NetworkSpec
from distill.weights import rebuild_network
from students.registry import student_spec
from teachers.backbones import BACKBONES, PREFIX
from teachers.registry import TEACHERS

FILES = ("student.safetensors", "backbone.safetensors")


def has_trained(path: Path) -> bool:
    """Return whether a run directory holds a trained network, or a path is a network's own file."""
    return (path.suffix == SUFFIX and path.is_file()) or any(
        (path / name).exists() for name in FILES
    )


def load_trained(path: Path, *, image_size: int | None = None) -> EmbeddingNetwork:
    """Rebuild a student, a pre-trained backbone or a converted teacher from its file or its run.

    Args:
        path: The file or the run directory.
        image_size: Side of its input in pixels; None takes the side that the file names.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        DistillError: When there is no such file or it was not written by this toolkit.
    """
    if not path.is_dir():
        return rebuild_network(path, _spec, image_size=image_size)
    for name in FILES:
        if (path / name).exists():
            return rebuild_network(path / name, _spec, image_size=image_size)
    raise DistillError(
        f"{path} holds no {' or '.join(FILES)}; it is written when a run ends: finish the run with "
        f"--output {path} --resume, or name another directory"
    )


def _spec(name: str) -> NetworkSpec:
    if name.startswith(PREFIX):
        return BACKBONES.get(name.removeprefix(PREFIX))
    return TEACHERS.get(name) if name in TEACHERS else student_spec(name)
