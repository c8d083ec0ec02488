"""Networks that this toolkit trained, rebuilt from what their runs left behind."""

from __future__ import annotations

from pathlib import Path

from distill.errors import DistillError
from distill.networks import EmbeddingNetwork, NetworkSpec
from distill.weights import rebuild_network
from students.registry import student_spec
from teachers.backbones import BACKBONES, PREFIX

FILES = ("student.safetensors", "backbone.safetensors")


def has_trained(run: Path) -> bool:
    """Return whether a run directory holds a trained network."""
    return any((run / name).exists() for name in FILES)


def load_trained(path: Path) -> EmbeddingNetwork:
    """Rebuild a student or a pre-trained backbone from its file or its run directory.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        DistillError: When there is no such file or it was not written by this toolkit.
    """
    if not path.is_dir():
        return rebuild_network(path, _spec)
    for name in FILES:
        if (path / name).exists():
            return rebuild_network(path / name, _spec)
    raise DistillError(
        f"{path} holds no {' or '.join(FILES)}; it is written when a run ends: finish the run with "
        f"--output {path} --resume, or name another directory"
    )


def _spec(name: str) -> NetworkSpec:
    if name.startswith(PREFIX):
        return BACKBONES.get(name.removeprefix(PREFIX))
    return student_spec(name)
