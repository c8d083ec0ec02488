"""What the numbers of metrics.json mean, in words for a model card.

Numbers that this module does not know are given with their name alone.

The lines of Python that load each exported format, as the model card shows them.

Every snippet takes `pixels` and leaves `embeddings`.

The tables of a model card: input contract, files, times.

Shapes: B batch, S image side, D embedding width.

The model card: what an exported network is, how to feed it, what was measured, where it ends.

Front matter as the Hugging Face Hub reads it (https://huggingface.co/docs/hub/model-cards). Names
that come from data or from people are escaped; sections without content are left out.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distill.exports.network import INPUT
from distill.exports.plain_weights import LibraryModel
from distill.exports.record import Artifact, Record
from distill.markdown import cleaned, code, escaped, table
from distill.models.networks import InputSpec

_WHOSE = {
    "teacher_": "the teacher: ",
    "untrained_": "the same network before training: ",
    "backbone_": "at the embedding: ",
    "": "",
}
_NEIGHBOR = (
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
    "nn_accuracy": _NEIGHBOR.format(votes="the", s=""),
    "nn_recall_ivf": "share of the nearest neighbors that inverted lists find",
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
        words = _NEIGHBOR.format(votes=votes, s="s" if found[1] else "")
        return f"{words}, searched through inverted lists" if found[3] else words
    if found := re.fullmatch(
        r"cluster_(alignment|nmi|ari|purity)(_k\d+)?(_count)?(_spherical)?(_minibatch)?", name
    ):
        return _cluster_meaning(*found.groups())
    if found := re.fullmatch(r"neighbor_agreement_k(\d+)", name):
        return f"share of the teacher's {found[1]} nearest images that are the student's, too"
    if found := re.fullmatch(r"linear_accuracy_labels_([^_]+)(_std)?", name):
        is_share = re.fullmatch(r"[\d.e-]+", found[1]) is not None
        labels = f"a share of {found[1]} of the labels" if is_share else f"the labels of {found[1]}"
        what = f"a linear classifier learned from {labels}"
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


def loading_code(artifact: Artifact, spec: InputSpec, model: LibraryModel | None) -> list[str]:
    """Return the lines that load a file that lies in the working directory and use it.

    Args:
        artifact: The file.
        spec: What the network wants to see.
        model: For the plain file, the library's model that it fits.
    """
    if artifact.format == "onnx":
        return [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{artifact.name}")',
            f'(embeddings,) = session.run(None, {{"{INPUT}": pixels}})  # a NumPy array',
        ]
    if artifact.format == "torch-export":
        return [
            "import torch",
            f'network = torch.export.load("{artifact.name}").module()',
            "embeddings = network(pixels)",
        ]
    if artifact.format == "safetensors":
        return [
            "import distill",
            f'network = distill.load_student("{artifact.name}")',
            "embeddings = network(pixels)",
        ]
    assert model is not None, "a plain file was written for this model"
    mean, std = list(spec.mean), list(spec.std)
    return [
        f"import safetensors.torch, torch, {model.library}",
        *model.code,
        f'model.load_state_dict(safetensors.torch.load_file("{artifact.name}"), strict=True)',
        f"mean, std = torch.tensor({mean}), torch.tensor({std})",
        "normalized = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)",
        "embeddings = model.eval()(normalized).flatten(1)",
    ]


FORMAT_WORDS = {
    "onnx": "ONNX",
    "torch-export": "torch.export",
    "safetensors": "safetensors, for this toolkit",
    "safetensors-plain": "safetensors, under a library's names",
}


def contract(spec: InputSpec, embedding_dim: int) -> list[str]:
    """Return the table of what goes into the network and what comes out.

    Args:
        spec: What it wants to see.
        embedding_dim: D.
    """
    side = spec.image_size
    prepared = (
        f"shorter side resized to {round(side / spec.crop_fraction)} px ({spec.interpolation}, "
        f"antialiased, as Pillow does), then the central {side} x {side} px"
    )
    mean, deviation = (", ".join(f"{x:g}" for x in values) for values in (spec.mean, spec.std))
    normalized = (
        f"included in every file but a plain safetensors file: mean {mean}, standard deviation "
        f"{deviation}"
    )
    embeddings = (
        f"`embeddings`, float32 (B, {embedding_dim}); of length 1 only where the table of files "
        "says so"
    )
    rows = [
        ("input", f"`{INPUT}`, float32 (B, 3, {side}, {side}), any B from 1 on, red, green, blue"),
        ("range", "0 to 1 (8-bit values divided by 255)"),
        ("preparation", prepared),
        ("normalization", normalized),
        ("output", embeddings),
    ]
    return table(("", ""), rows)


def files(record: Record) -> list[str]:
    """Return the table of the files of an export folder, with differences and times."""
    header = ("file", "format", "bytes", "length 1", "largest difference", "SHA-256")
    rows = [
        (
            code(each.name),
            FORMAT_WORDS[each.format],
            f"{each.num_bytes:,}",
            "yes" if each.l2_normalize else "no",
            f"{each.relative_difference:.1e}",
            code(each.sha256),
        )
        for each in record.artifacts
    ]
    explained = (
        "The difference is that of an embedding from the original network's, as a share of its "
        "length, over batches of 1, 3 and 8 real images on a CPU in float32."
    )
    return [*table(header, rows), "", explained, *_times(record)]


def _times(record: Record) -> list[str]:
    timed = [each for each in record.artifacts if each.milliseconds]
    if not timed:
        return []
    sizes = list(timed[0].milliseconds)
    header = ("milliseconds for an image", *(f"batches of {size}" for size in sizes))
    rows = [
        (code(each.name), *(_pair(each.milliseconds[size]) for size in sizes)) for each in timed
    ]
    return ["", *table(header, rows), "", "The original network, then the file, side by side."]


def _pair(times: Sequence[float]) -> str:
    return f"{times[0]:.3g} / {times[1]:.3g}"


Rows = tuple[tuple[str, str], ...]  # label and value, Markdown already

_USE = (
    "The network turns an image into a vector that is to be compared with the vectors of other "
    "images: nearest neighbors, clusters, duplicates, or as features of a classifier that is "
    "trained on them. It was trained without labels and names no classes by itself."
)
_LIMITS = (
    "The figures hold for the data they were measured on; on images of another kind (subject, "
    "camera, resolution, time, place) they have to be measured again.",
    "What the training images, and the teacher's before them, lack or show one-sidedly, the "
    "embedding lacks or shows one-sidedly too.",
    "Distances are not probabilities: a threshold has to be chosen on data of the application.",
    "It was not examined for decisions about people.",
)


@dataclass(frozen=True)
class CardFacts:
    """What a model card says beside the files.

    Attributes:
            title: Of the card; plain text, as are `summary` and `tags`.
        summary: One or two sentences on how it was trained.
        num_parameters: Of the network.
        embedding_dim: D.
        input: What it wants to see.
        library: The library's model that a plain file fits, if any.
        license: SPDX or Hugging Face name.
        dataset: Name of the images it was trained on; plain text.
        tags: For the front matter.
        teacher: Rows on the teacher; empty without one.
        data: Rows on the images.
        settings: Rows on the training.
        metrics: The content of metrics.json.
        versions: What it was trained with.
    """

    title: str
    summary: str
    num_parameters: int
    embedding_dim: int
    input: InputSpec
    library: LibraryModel | None
    license: str
    dataset: str
    tags: tuple[str, ...]
    teacher: Rows
    data: Rows
    settings: Rows
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]


def model_card(facts: CardFacts, record: Record) -> str:
    """Return the card of all files of an export folder, as Markdown."""
    parts = [
        ["---", yaml.safe_dump(_front_matter(facts), sort_keys=False).rstrip(), "---"],
        [f"# {escaped(facts.title)}"],
        [f"{escaped(facts.summary)} {_size(facts)}"],
        *_section("Input and output", contract(facts.input, facts.embedding_dim)),
        *_section("Files", files(record)),
        *_section("Loading", _loading(facts, record)),
        *_section("Teacher", table(("", ""), facts.teacher) if facts.teacher else []),
        *_section("Data", table(("", ""), facts.data)),
        *_section("Figures", _figures(facts.metrics)),
        *_section("Settings", table(("option", "value"), facts.settings)),
        *_section("Intended use", [_USE]),
        *_section("Limits", [f"- {limit}" for limit in _LIMITS]),
        *_section("Versions", _versions(facts, record)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _section(title: str, lines: list[str]) -> list[list[str]]:
    return [[f"## {title}"], lines] if lines else []


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    measured = {
        name: value
        for name, value in facts.metrics.items()
        if is_accuracy(name) and isinstance(value, (int, float))
    }
    head: dict[str, Any] = {
        "license": cleaned(facts.license),
        "pipeline_tag": "image-feature-extraction",
        "tags": [cleaned(tag) for tag in facts.tags],
    }
    if not measured:
        return head
    dataset = cleaned(facts.dataset)
    result = {
        "task": {"type": "image-feature-extraction"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [
            {"type": "accuracy", "name": name, "value": value} for name, value in measured.items()
        ],
    }
    index = [{"name": cleaned(facts.title), "results": [result]}]
    return {**head, "metrics": ["accuracy"], "model-index": index}


def _size(facts: CardFacts) -> str:
    return (
        f"{facts.num_parameters:,} parameters; an image of {facts.input.image_size} x "
        f"{facts.input.image_size} pixels becomes {facts.embedding_dim:,} numbers."
    )


def _loading(facts: CardFacts, record: Record) -> list[str]:
    lines: list[str] = []
    for artifact in record.artifacts:
        snippet = loading_code(artifact, facts.input, facts.library)
        lines += ["", f"{FORMAT_WORDS[artifact.format]}:", "", "```python", *snippet, "```"]
    return lines[1:]


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    rows = [(escaped(name), value, words) for name, value, words in figures(metrics)]
    if not rows:
        return ["Nothing was measured."]
    return [*table(("figure", "value", "meaning"), rows), "", "Accuracies are fractions of 1."]


def _versions(facts: CardFacts, record: Record) -> list[str]:
    rows = [("trained with", _listed(facts.versions))]
    rows += [
        (f"{code(each.name)} written with", _listed(each.versions)) for each in record.artifacts
    ]
    return table(("", ""), rows)


def _listed(versions: Mapping[str, str]) -> str:
    return escaped(", ".join(f"{name} {version}" for name, version in versions.items()))
