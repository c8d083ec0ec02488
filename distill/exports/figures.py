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
    "matched to classes {how})"
)
_AGREEING = "{what} of k-means clusters and classes of the validation images"
_LINEAR = "accuracy on the validation images of {what}"
_VOC = "mean average precision of {what} on PASCAL VOC or a set in its layout, {rule}"
_FIXED = {
    "nn_accuracy": _NEIGHBOUR.format(votes="the", s=""),
    "nn_recall_ivf": "share of the nearest neighbours that inverted lists find",
    "linear_accuracy": _LINEAR.format(what="a linear classifier, as published"),
    "linear_accuracy_sweep": _LINEAR.format(what="a linear classifier, the best of a sweep"),
    "linear_accuracy_logistic": _LINEAR.format(what="a logistic regression"),
    "robustness_clean_error": "error on validation images as they are",
    "robustness_mean_error": "error under ImageNet-C's corruptions, computed on the fly",
    "robustness_gap": "error under corruption minus error on the images as they are",
    "robustness_mce": "mean corruption error, relative to AlexNet's",
    "train_seconds": "seconds of training",
    "num_steps": "optimizer steps",
    "num_skipped_images": "images left out because they cannot be read",
    "residual_information": "nats that one view of an image tells beyond the other",
    "information_y_z": "lower bound in nats on what the embedding of one view tells of the other",
    "view_cosine": "mean cosine of the embeddings of two views of an image",
    "lipschitz_sampled": "largest slope of the embedding over sampled pairs, a lower bound",
    "lipschitz_ascended": "largest slope of the embedding that ascent found, a lower bound",
}
_AGREEMENTS = {
    "nmi": "normalized mutual information",
    "ari": "adjusted Rand index",
    "purity": "purity",
}
_RULES = {"": "11-point rule", "_area": "area under the curve"}


def figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of every number; what is not a number is left out."""
    return [
        (name, _shown(value), meaning(name)) for name, value in metrics.items() if _is_number(value)
    ]


def meaning(name: str) -> str:
    """Return what a number of metrics.json says; empty when that is not known here."""
    name, _, data = name.partition("@")
    if data:
        words = meaning(name)
        return words and f"{words}; on {data}"
    for prefix, whose in _WHOSE.items():
        if name.startswith(prefix):
            words = _meaning(name.removeprefix(prefix))
            if words:
                return whose + words
    return ""


def is_accuracy(name: str) -> bool:
    """Tell whether a number is an accuracy of the exported network itself, on the run's data."""
    known = r"nn_accuracy(_k\d+(_weighted)?)?|cluster_alignment(_k\d+)?|linear_accuracy"
    return re.fullmatch(known, name) is not None


def _meaning(name: str) -> str:
    if name in _FIXED:
        return _FIXED[name]
    if found := re.fullmatch(r"nn_accuracy(?:_k(\d+))?(_weighted)?(_ivf)?", name):
        votes = f"a {'weighted ' if found[2] else ''}vote of the {found[1]}" if found[1] else "the"
        words = _NEIGHBOUR.format(votes=votes, s="s" if found[1] else "")
        return f"{words}, searched through inverted lists" if found[3] else words
    if found := re.fullmatch(
        r"cluster_(alignment|nmi|ari|purity)(_k\d+)?(_count)?(_spherical)?(_minibatch)?", name
    ):
        return _cluster_meaning(*found.groups())
    if found := re.fullmatch(r"neighbour_agreement_k(\d+)", name):
        return f"share of the teacher's {found[1]} nearest images that are the student's, too"
    if found := re.fullmatch(r"linear_accuracy_labels_([^_]+)(_std)?", name):
        is_share = re.fullmatch(r"[\d.e-]+", found[1]) is not None
        labels = f"a share of {found[1]} of the labels" if is_share else f"the labels of {found[1]}"
        what = f"a linear classifier learnt from {labels}"
        return ("standard deviation over draws of the " if found[2] else "") + _LINEAR.format(
            what=what
        )
    if found := re.fullmatch(r"voc_(classification|detection)_map(_area)?", name):
        return _VOC.format(what=found[1], rule=_RULES[found[2] or ""])
    return ""


def _cluster_meaning(
    kind: str, number: str | None, count: str | None, spherical: str | None, minibatch: str | None
) -> str:
    which = f"{number.removeprefix('_k')} clusters" if number else "as many clusters as classes"
    means = [word for word, there in (("spherical", spherical), ("mini-batch", minibatch)) if there]
    if means:
        which += f", {' '.join(means)} k-means"
    if kind == "alignment":
        how = "by count on the training images" if count else "on the training images"
        return _CLUSTERS.format(which=which, how=how)
    return f"{_AGREEING.format(what=_AGREEMENTS[kind])} ({which})"


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
