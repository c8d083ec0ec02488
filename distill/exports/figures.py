"""What the numbers of metrics.json mean, in words for a model card.

Numbers that this module does not know are given with their name alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_WHOSE = {
    "teacher_": "the teacher: ",
    "untrained_": "the same network before training: ",
    "backbone_": "at the embedding: ",
    "": "",
}
_NEIGHBOUR = (
    "share of the validation images that get their own class from {votes} nearest training "
    "image{s} by cosine"
)
_CLUSTERS = (
    "share of the validation images in the class that their k-means cluster stands for ({which}, "
    "matched to classes on the training images)"
)
_FIXED = {
    "nn_accuracy": _NEIGHBOUR.format(votes="the", s=""),
    "cluster_alignment": _CLUSTERS.format(which="as many clusters as classes"),
    "train_seconds": "seconds of training",
    "num_steps": "optimizer steps",
    "num_skipped_images": "images left out because they cannot be read",
    "residual_information": "nats that one view of an image tells beyond the other",
    "information_y_z": "lower bound in nats on what the embedding of one view tells of the other",
    "view_cosine": "mean cosine of the embeddings of two views of an image",
    "lipschitz_sampled": "largest slope of the embedding over sampled pairs, a lower bound",
    "lipschitz_ascended": "largest slope of the embedding that ascent found, a lower bound",
}


def figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of every number; what is not a number is left out."""
    return [
        (name, _shown(value), meaning(name)) for name, value in metrics.items() if _is_number(value)
    ]


def meaning(name: str) -> str:
    """Return what a number of metrics.json says; empty when that is not known here."""
    for prefix, whose in _WHOSE.items():
        if name.startswith(prefix):
            words = _meaning(name.removeprefix(prefix))
            if words:
                return whose + words
    return ""


def is_accuracy(name: str) -> bool:
    """Tell whether a number is an accuracy of the exported network itself."""
    return (
        re.fullmatch(r"nn_accuracy(_k\d+(_weighted)?)?|cluster_alignment(_k\d+)?", name) is not None
    )


def _meaning(name: str) -> str:
    if name in _FIXED:
        return _FIXED[name]
    if found := re.fullmatch(r"nn_accuracy_k(\d+)(_weighted)?", name):
        votes = f"a {'weighted ' if found[2] else ''}vote of the {found[1]}"
        return _NEIGHBOUR.format(votes=votes, s="s")
    if found := re.fullmatch(r"cluster_alignment_k(\d+)", name):
        return _CLUSTERS.format(which=f"{found[1]} clusters")
    return ""


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
