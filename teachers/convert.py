"""Converts a teacher, from any format of its published weights, to one safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.files import require_file_place
from distill.models.checkpoints.safetensors import SUFFIX
from distill.models.networks import num_parameters
from distill.models.weights import save_network
from teachers.load import load_teacher


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `distill convert`."""

    teacher: str
    """Registry name (`distill list teachers`), timm:NAME, torchvision:NAME or a run directory."""
    to: Path
    """The .safetensors file to write; it must not exist."""
    teacher_weights: Path | None = None
    """Weights of the teacher, in any supported format; None: the published ones."""


def convert(options: ConvertOptions) -> dict[str, Any]:
    """Write a teacher with its name, its input and a checksum to a safetensors file.

    The file can be used as a teacher: `--teacher r50x4.safetensors`.

    Returns:
        The teacher's name, its number of parameters, its embedding width, and the file with its
        size in bytes.

    Raises:
        DistillError: The teacher is unknown, its weights are not available or do not match, or the
            file cannot be written.
    """
    target = options.to
    if target.suffix != SUFFIX:
        raise DistillError(f"--to {target} must end in {SUFFIX}; choose such a name")
    if target.exists():
        raise DistillError(f"--to {target} exists already; remove it or name another file")
    require_file_place(target, flag="--to", example="r50x4.safetensors")
    network = load_teacher(options.teacher, weights=options.teacher_weights)
    try:
        save_network(network, target)
    except OSError as error:
        raise DistillError(f"--to {target} cannot be written: {error.strerror}") from error
    return {
        "teacher": network.spec.name,
        "num_parameters": num_parameters(network),
        "embedding_dim": network.embedding_dim,
        "file": str(target),
        "num_bytes": target.stat().st_size,
    }
