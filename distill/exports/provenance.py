"""What is known about a finished run, for those who get its network without its directory.

Paths are told by their last part: folders of this machine say nothing elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import METHODS
from distill.data.sources import ImageData
from distill.errors import DistillError
from distill.exports.model_card import CardFacts, Rows
from distill.exports.plain_weights import library_model
from distill.markdown import escaped
from distill.models.networks import EmbeddingNetwork, num_parameters
from distill.run_directory import read_config, read_metrics, read_run_metadata
from teachers.load import FILES, load_trained
from teachers.registry import TEACHERS

_METHODS = {  # of pre-training, and where they were published
    "simclr": ("SimCLR", "2002.05709"),
    "byol": ("BYOL", "2006.07733"),
    "c-simclr": ("C-SimCLR", "2109.12909"),
    "c-byol": ("C-BYOL", "2109.12909"),
}
_MAX_CLASSES = 20  # named in a card
# How a run was executed and where it lies, not what was trained.
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


@dataclass(frozen=True)
class FinishedRun:
    """A run that left a trained network.

    Attributes:
        path: The run directory.
        command: `train` or `pretrain`.
        options: As config.yaml has them.
        versions: What it was trained with.
        weights: The network's own file.
        network: In evaluation mode, on the CPU.
    """

    path: Path
    command: str
    options: dict[str, Any]
    versions: dict[str, str]
    weights: Path
    network: EmbeddingNetwork


def open_run(path: Path) -> FinishedRun:
    """Read what a run left behind.

    Raises:
        DistillError: No run directory, a run that is not finished, or damaged files.
    """
    if not (path / "config.yaml").is_file():
        raise DistillError(
            f"{path} is not a run directory: it holds no config.yaml; name one that "
            "`distill train` or `distill pretrain` wrote"
        )
    options, beside = read_config(path), read_run_metadata(path)
    network = load_trained(path)
    weights = next(path / name for name in FILES if (path / name).exists())
    return FinishedRun(path, beside.command, options, dict(beside.versions), weights, network)


def card_facts(run: FinishedRun, data: ImageData | None, *, license_name: str) -> CardFacts:
    """Gather what a model card says of a run.

    Args:
        run: The run.
        data: The images it was trained on; None when they are not at hand.
        license_name: Of the exported network.
    """
    network, dataset = run.network, _dataset(run, data)
    title, summary = _title_and_summary(run, dataset)
    kind = "self-supervised-learning"
    if run.command == "train":
        kind = "knowledge-distillation" if _is_distilled(run) else "supervised-learning"
    return CardFacts(
        title=title,
        summary=summary,
        num_parameters=num_parameters(network),
        embedding_dim=network.embedding_dim,
        input=network.input,
        library=library_model(network),
        license=license_name,
        dataset=dataset,
        tags=("image-feature-extraction", kind, "distill", _shown(network.spec.name)),
        teacher=tuple(_teacher(run)) if _is_distilled(run) else (),
        data=tuple(_data(dataset, data)),
        settings=_settings(run),
        metrics=read_metrics(run.path),
        versions=run.versions,
    )


def _is_distilled(run: FinishedRun) -> bool:
    return run.command == "train" and METHODS.get(_method(run)).teacher != "never"


def _method(run: FinishedRun) -> str:
    return str(run.options.get("method", "compress"))  # before there were baselines


def _dataset(run: FinishedRun, data: ImageData | None) -> str:
    return data.name if data is not None else _shown(run.options.get("data") or "unknown images")


def _title_and_summary(run: FinishedRun, dataset: str) -> tuple[str, str]:
    options = run.options
    if run.command == "train":
        return _of_student(run, dataset)
    method, paper = _METHODS.get(str(options.get("method")), ("an unknown method", "unknown"))
    backbone = run.network.spec.name.partition(":")[2]
    return f"{backbone} pre-trained by {method}", (
        f"A {backbone} that was trained without labels by {method} (arXiv {paper}) on the images "
        f"of {dataset}."
    )


def _of_student(run: FinishedRun, dataset: str) -> tuple[str, str]:
    student, teacher = _shown(run.options.get("student")), _shown(run.options.get("teacher"))
    method = _method(run)
    if not _is_distilled(run):
        return f"{student} trained with labels", (
            f"A {student} that was trained with the labels of {dataset}, without a teacher."
        )
    summary = (
        f"A {student} that was trained without labels, by CompRess (arXiv 2010.14713), to see "
        f"the images of {dataset} near each other where {teacher} does."
    )
    if method != "compress":
        summary = (
            f"A {student} that was trained without labels on the images of {dataset} to imitate "
            f"{teacher}. Method {method}: {METHODS.get(method).summary}."
        )
    return f"{student} distilled from {teacher}", summary


def _teacher(run: FinishedRun) -> Iterator[tuple[str, str]]:
    name = str(run.options.get("teacher"))
    yield "name", escaped(_shown(name))
    if run.options.get("teacher_weights"):
        yield "weights", escaped(_shown(run.options["teacher_weights"])) + ", a file"
    if name in TEACHERS:
        yield from _registered(name)
    elif name.startswith("timm:"):
        yield from _of_timm(name.removeprefix("timm:"))
    elif name.startswith("torchvision:"):
        yield "source", "a model of torchvision"
    else:
        yield "source", "trained or converted by this toolkit; its own run tells more"


def _registered(name: str) -> Iterator[tuple[str, str]]:
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


def _of_timm(name: str) -> Iterator[tuple[str, str]]:
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


def _data(dataset: str, data: ImageData | None) -> Iterator[tuple[str, str]]:
    yield "images", escaped(dataset)
    if data is None:
        return
    yield "for training", f"{len(data.train):,}"
    yield "for validation", f"{len(data.val):,}" if data.val is not None else "none"
    classes = data.train.classes
    if not classes:
        yield "classes", "none: the images have no labels"
        return
    names = ", ".join(escaped(name) for name in classes[:_MAX_CLASSES])
    rest = len(classes) - _MAX_CLASSES
    more = f" and {rest:,} more" if rest > 0 else ""
    yield "classes", f"{len(classes):,}, for the figures alone: {names}{more}"


def _settings(run: FinishedRun) -> Rows:
    return tuple(
        (escaped(name), escaped(_shown(value)))
        for name, value in run.options.items()
        if value is not None and name not in _OF_THE_MACHINE
    )


def _shown(value: Any) -> str:
    """Return an option in words; of a path the last part."""
    text = str(value)
    return Path(text).name if os.sep in text else text
