"""The unit vectors of a trained network: through the heads of pre-training, or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork
from distill.models.weights import mismatches, read_state_dict, shapes
from distill.run_directory import HEADS, read_config
from teachers.load import load_trained
from teachers.pretraining import build_heads, directions


class Projection(nn.Module):
    """Maps images to unit vectors, frozen and in evaluation mode; images may take a gradient.

    Args:
        network: The backbone.
        method: The heads that it was pre-trained through; None: the normalized embedding itself.
    """

    def __init__(self, network: EmbeddingNetwork, method: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.method: Any = method
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, P), float32.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1], not normalized.
        """
        embedding = self.network(images)
        if self.method is None:
            return directions(embedding)
        return self.method.projection(self.method.head(embedding))


def load_projection(run: Path) -> Projection:
    """Rebuild what a pre-training run compares its views by, on the CPU.

    Args:
        run: The run directory.

    Raises:
        DistillError: No such run, a run without heads, or heads that do not fit.
    """
    return through_heads(load_trained(run), run)


def through_heads(network: EmbeddingNetwork, run: Path) -> Projection:
    """Put the heads of a pre-training run behind its backbone.

    Args:
        network: The run's backbone, on any device; the projection is on the same.
        run: The run directory.

    Raises:
        DistillError: A run without heads, or heads that do not fit.
    """
    if not has_heads(run):
        raise DistillError(
            f"{run} has no {HEADS}, so it has no projection: only a finished run of `distill "
            "pretrain` has one; use --layer backbone"
        )
    options = read_config(run, command="pretrain")
    method = build_heads(options, network.embedding_dim)
    heads = read_state_dict(run / HEADS)
    problems = mismatches(shapes(method.state_dict()), shapes(heads))
    if problems:
        raise DistillError(
            f"{run / HEADS} does not fit {options['method']} as config.yaml describes it: "
            f"{'; '.join(problems)}. Restore both from the same run, or use --layer backbone"
        )
    method.load_state_dict(heads, strict=False)  # what may be absent, `mismatches` allows
    return Projection(network, method.to(network.mean.device))


def has_heads(run: Path) -> bool:
    """Return whether a run directory holds the heads of pre-training."""
    return (run / HEADS).is_file()
