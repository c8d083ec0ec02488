"""The model card: what an exported network is, how to feed it, what was measured, where it ends.

Front matter as the Hugging Face Hub reads it (https://huggingface.co/docs/hub/model-cards). Names
that come from data or from people are escaped; sections without content are left out.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from distill.exports.card_tables import FORMAT_WORDS, contract, files
from distill.exports.figures import figures, is_accuracy
from distill.exports.loading import loading_code
from distill.exports.markdown import cleaned, code, escaped, table
from distill.exports.plain_weights import LibraryModel
from distill.exports.record import Record
from distill.networks import InputSpec

Rows = tuple[tuple[str, str], ...]  # label and value, Markdown already

_USE = (
    "The network turns an image into a vector that is to be compared with the vectors of other "
    "images: nearest neighbours, clusters, duplicates, or as features of a classifier that is "
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
