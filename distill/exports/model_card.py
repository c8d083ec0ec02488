"""The model card of an exported network: input and output, training, metrics, limits.

Front matter follows the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards). Meanings of
metrics come from the evaluations, loading code from the file formats. Names from data and users are
escaped, and paths are reduced to their last part.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.data.sources import ImageData
from distill.evaluation.base import describe_metric
from distill.exports.formats import FILE_FORMATS, INPUT
from distill.exports.record import Record
from distill.losses import METHODS
from distill.markdown import cleaned, code, escaped, table
from distill.models.networks import EmbeddingNetwork, is_own_module, num_parameters
from distill.run_directory import read_config, read_metrics, read_run_metadata
from teachers.registry import TEACHERS

_PRETRAINING = {  # methods, and where they were published
    "simclr": ("SimCLR", "2002.05709"),
    "byol": ("BYOL", "2006.07733"),
    "c-simclr": ("C-SimCLR", "2109.12909"),
    "c-byol": ("C-BYOL", "2109.12909"),
}
_HEADLINE = ("nn_accuracy", "cluster_alignment", "linear_accuracy")  # for the front matter
_MAX_CLASSES = 20  # named in a card
# Options of execution and storage, not of what was trained.
_OF_THE_MACHINE = {
    "teacher_cache",
    "teacher_batch_size",
    "num_workers",
    "on_bad_image",
    "max_bad_images",
    "device",
    "output",
    "resume",
    "nn_every",
    "log_every",
    "checkpoint_every",
    "keep_every",
    "on_failed_checkpoint",
    "measure",
}
_USE = (
    "The network maps an image to an embedding, to be compared with the embeddings of other "
    "images (nearest neighbors, clusters, duplicates) or used as features of a classifier. It does "
    "not predict classes by itself."
)
_LIMITS = (
    "The figures hold for the data they were measured on; on images of another kind (subject, "
    "camera, resolution, time, place) they have to be measured again.",
    "Gaps and biases of the training images, and of the teacher's, are in the embedding, too.",
    "Distances are not probabilities: a threshold has to be chosen on data of the application.",
    "It was not evaluated for decisions about people.",
)


class ModelCard:
    """The card of a run's network.

    Args:
        run: A run directory with a trained network.
        network: The network.
        data: The images it was trained on; None when they are not available.
        license_name: Of the exported network: an SPDX or Hugging Face name.
    """

    def __init__(
        self, run: Path, network: EmbeddingNetwork, data: ImageData | None, *, license_name: str
    ) -> None:
        self.network = network
        self.data = data
        self.license = license_name
        self.options = read_config(run)
        self.metrics = read_metrics(run)
        self.command, self.versions, _ = read_run_metadata(run)
        named = self.options.get("data") or "unknown images"
        self.dataset = _shown(named) if data is None else data.name

    def text(self, record: Record, weights: Path) -> str:
        """Return the card of all files of an export folder, as Markdown.

        Args:
            record: The files.
            weights: The run's file of the network's weights.
        """
        title, summary = self._title_and_summary()
        side = self.network.input.image_size
        size = (
            f"{num_parameters(self.network):,} parameters; an image of {side} x {side} pixels "
            f"becomes {self.network.embedding_dim:,} numbers."
        )
        settings = [
            (escaped(name), escaped(_shown(value)))
            for name, value in self.options.items()
            if value is not None and name not in _OF_THE_MACHINE
        ]
        sections = {
            "Input and output": self._contract(),
            "Files": _files(record),
            "Loading": self._loading(record, weights),
            "Teacher": table(("", ""), list(self._teacher())) if self._is_distilled else [],
            "Data": table(("", ""), list(self._data())),
            "Figures": _figures(self.metrics),
            "Settings": table(("option", "value"), settings),
            "Intended use": [_USE],
            "Limits": [f"- {limit}" for limit in _LIMITS],
            "Versions": self._versions(record),
        }
        front_matter = yaml.safe_dump(self._front_matter(title), sort_keys=False)
        parts = [f"---\n{front_matter}---", f"# {escaped(title)}", f"{escaped(summary)} {size}"]
        for heading, lines in sections.items():
            if lines:
                parts += [f"## {heading}", "\n".join(lines)]
        return "\n\n".join(parts) + "\n"

    @property
    def _is_distilled(self) -> bool:
        """Whether the network was trained with a teacher."""
        if self.command != "train":
            return False
        return self._method not in METHODS or METHODS.get(self._method).teacher != "never"

    @property
    def _method(self) -> str:
        return str(self.options.get("method", "compress"))  # before there were baselines

    def _title_and_summary(self) -> tuple[str, str]:
        """Return the title, and one or two sentences on how the network was trained."""
        if self.command != "train":
            method, paper = _PRETRAINING.get(self._method, (self._method, "unknown"))
            backbone = self.network.spec.name.partition(":")[2]
            return f"{backbone} pre-trained by {method}", (
                f"A {backbone} that was trained without labels by {method} (arXiv {paper}) on the "
                f"images of {self.dataset}."
            )
        student, teacher = _shown(self.options.get("student")), _shown(self.options.get("teacher"))
        if not self._is_distilled:
            return f"{student} trained with labels", (
                f"A {student} that was trained with the labels of {self.dataset}, without a "
                "teacher."
            )
        known = METHODS.get(self._method).summary if self._method in METHODS else self._method
        return f"{student} distilled from {teacher}", (
            f"A {student} that was distilled from {teacher} on the images of {self.dataset}, "
            f"without labels. Method: {known}."
        )

    def _front_matter(self, title: str) -> dict[str, Any]:
        kind = "self-supervised-learning"
        if self.command == "train":
            kind = "knowledge-distillation" if self._is_distilled else "supervised-learning"
        tags = ("image-feature-extraction", kind, "distill", _shown(self.network.spec.name))
        head: dict[str, Any] = {
            "license": cleaned(self.license),
            "pipeline_tag": "image-feature-extraction",
            "tags": [cleaned(tag) for tag in tags],
        }
        measured = [
            {"type": "accuracy", "name": name, "value": self.metrics[name]}
            for name in _HEADLINE
            if _is_number(self.metrics.get(name))
        ]
        if not measured:
            return head
        dataset = cleaned(self.dataset)
        result = {
            "task": {"type": "image-feature-extraction"},
            "dataset": {"name": dataset, "type": dataset},
            "metrics": measured,
        }
        index = [{"name": cleaned(title), "results": [result]}]
        return {**head, "metrics": ["accuracy"], "model-index": index}

    def _contract(self) -> list[str]:
        """Return the table of input and output."""
        spec = self.network.input
        side = spec.image_size
        mean, deviation = (", ".join(f"{x:g}" for x in values) for values in (spec.mean, spec.std))
        rows = [
            (
                "input",
                f"`{INPUT}`, float32 (B, 3, {side}, {side}), any B from 1 on, red, green, blue",
            ),
            ("range", "0 to 1 (8-bit values divided by 255)"),
            (
                "preparation",
                f"shorter side resized to {round(side / spec.crop_fraction)} px "
                f"({spec.interpolation}, antialiased, as Pillow does), then the central "
                f"{side} x {side} px",
            ),
            (
                "normalization",
                f"included in every file but a plain safetensors file: mean {mean}, standard "
                f"deviation {deviation}",
            ),
            (
                "output",
                f"`embeddings`, float32 (B, {self.network.embedding_dim}); of length 1 only where "
                "the table of files says so",
            ),
        ]
        return table(("", ""), rows)

    def _loading(self, record: Record, weights: Path) -> list[str]:
        lines: list[str] = []
        for artifact in record.artifacts:
            kind = FILE_FORMATS[artifact.format](self.network, weights)
            snippet = kind.snippet(artifact.name)
            lines += ["", f"{kind.title}:", "", "```python", *snippet, "```"]
        return lines[1:]

    def _teacher(self) -> Iterator[tuple[str, str]]:
        name = str(self.options.get("teacher"))
        yield "name", escaped(_shown(name))
        if self.options.get("teacher_weights"):
            yield "weights", escaped(_shown(self.options["teacher_weights"])) + ", a file"
        if name in TEACHERS:
            yield from _registered_teacher(name)
        elif name.startswith("timm:"):
            yield from _timm_teacher(name.removeprefix("timm:"))
        elif name.startswith("torchvision:"):
            yield "source", "a model of torchvision"
        elif is_own_module(name):
            yield "source", "a PyTorch module of the author of the student"
        else:
            yield "source", "trained or converted by this toolkit"

    def _data(self) -> Iterator[tuple[str, str]]:
        yield "images", escaped(self.dataset)
        if self.data is None:
            return
        yield "for training", f"{len(self.data.train):,}"
        yield "for validation", f"{len(self.data.val):,}" if self.data.val is not None else "none"
        classes = self.data.train.classes
        if not classes:
            yield "classes", "none: the images have no labels"
            return
        names = ", ".join(escaped(name) for name in classes[:_MAX_CLASSES])
        rest = len(classes) - _MAX_CLASSES
        more = f" and {rest:,} more" if rest > 0 else ""
        purpose = "for the figures alone" if self._is_distilled else "for labels"
        yield "classes", f"{len(classes):,}, {purpose}: {names}{more}"

    def _versions(self, record: Record) -> list[str]:
        rows = [("trained with", _listed(self.versions))]
        rows += [
            (f"{code(each.name)} written with", _listed(each.versions)) for each in record.artifacts
        ]
        return table(("", ""), rows)


def _files(record: Record) -> list[str]:
    """Return the table of the files of an export folder, with differences and times."""
    header = ("file", "format", "bytes", "length 1", "largest difference", "SHA-256")
    rows = [
        (
            code(each.name),
            FILE_FORMATS[each.format].title,
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
    lines = [*table(header, rows), "", explained]
    timed = [each for each in record.artifacts if each.milliseconds]
    if not timed:
        return lines
    sizes = list(timed[0].milliseconds)
    timed_header = ("milliseconds for an image", *(f"batches of {size}" for size in sizes))
    times = [
        (
            code(each.name),
            *(" / ".join(f"{ms:.3g}" for ms in each.milliseconds[size]) for size in sizes),
        )
        for each in timed
    ]
    return [
        *lines,
        "",
        *table(timed_header, times),
        "",
        "The original network, then the file, side by side.",
    ]


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    """Return the table of every number with what it means; what is not a number is left out."""
    rows = []
    for name, value in metrics.items():
        if _is_number(value):
            meaning = describe_metric(name)
            words = "" if meaning is None else escaped(meaning.words)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            rows.append((escaped(name), shown, words))
    if not rows:
        return ["Nothing was measured."]
    return [*table(("figure", "value", "meaning"), rows), "", "Accuracies are fractions of 1."]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _registered_teacher(name: str) -> Iterator[tuple[str, str]]:
    spec = TEACHERS.get(name)
    yield "what it is", escaped(spec.summary)
    published = spec.publication
    if published is None:
        return
    yield "paper", _arxiv(published.paper)
    yield "license of its weights", escaped(published.license)
    yield (
        "linear accuracy on ImageNet",
        f"{published.linear_accuracy:.3f} as its authors state it, as a fraction of 1",
    )
    yield "published at", f"<{published.source.url}>"


def _timm_teacher(name: str) -> Iterator[tuple[str, str]]:
    yield "source", "a model of timm"
    try:
        import timm
    except ImportError:
        return
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    yield "license of its weights", escaped(getattr(config, "license", None) or "not stated")
    papers = getattr(config, "paper_ids", None) or ()
    for paper in (papers,) if isinstance(papers, str) else papers:
        yield "paper", _arxiv(paper.removeprefix("arXiv:"))


def _arxiv(paper: str) -> str:
    return f"[arXiv {escaped(paper)}](https://arxiv.org/abs/{paper})"


def _listed(versions: Mapping[str, str]) -> str:
    return escaped(", ".join(f"{name} {version}" for name, version in versions.items()))


def _shown(value: Any) -> str:
    """Return an option in words; of a path the last part."""
    text = str(value)
    return Path(text).name if os.sep in text else text
