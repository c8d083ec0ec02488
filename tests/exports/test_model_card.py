"""What a model card says of a run, without training or exporting anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distill.data.images import ArrayImages
from distill.data.sources import ImageData
from distill.exports.model_card import ModelCard
from distill.exports.record import Record
from distill.models.networks import EmbeddingNetwork
from students.registry import build_student


@pytest.fixture(scope="module")
def network() -> EmbeddingNetwork:
    return build_student("timm:test_resnet", image_size=32).eval()


@pytest.fixture
def card(network, tmp_path: Path):
    """Return a function that gives the card of a run with some options and numbers."""

    def make(data: ImageData | None = None, metrics: dict | None = None, **options: Any) -> str:
        given = {"student": "timm:test_resnet", "teacher": "pixels", "data": "/home/me/photos"}
        content = {**given, **options, "versions": {"torch": "2.0"}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        (tmp_path / "metrics.json").write_text(json.dumps(metrics or {}))
        made = ModelCard(tmp_path, network, data, license_name="MIT")
        return made.text(Record("w"), tmp_path / "student.safetensors")

    return make


def section(text: str, heading: str) -> str:
    return text.partition(f"## {heading}\n\n")[2].partition("\n## ")[0]


def rows(text: str, heading: str) -> dict[str, str]:
    """Return the two-column table of a section."""
    lines = section(text, heading).splitlines()
    return dict(line[2:-2].split(" | ", 1) for line in lines[2:] if line.startswith("| "))


def test_a_published_teacher_with_its_terms(card):
    for name in ("r50-mocov2", "moco-v2"):
        teacher = rows(card(teacher=name), "Teacher")
        assert teacher["license of its weights"] == "CC-BY-NC-4.0"
        assert teacher["paper"] == "[arXiv 2003.04297](https://arxiv.org/abs/2003.04297)"
        assert teacher["linear accuracy on ImageNet"].startswith("0.711 as its authors state it")
        assert teacher["published at"].startswith("<https://dl.fbaipublicfiles.com/moco/")


def test_teachers_of_libraries_and_of_one_s_own(card):
    teacher = rows(card(teacher="timm:resnet50.a1_in1k"), "Teacher")
    assert teacher["source"] == "a model of timm"
    assert teacher["license of its weights"] == "apache-2.0"
    assert "[arXiv 2110.00476](https://arxiv.org/abs/2110.00476)" in teacher.values()
    teacher = rows(card(teacher="timm:gone_from_timm"), "Teacher")
    assert teacher["license of its weights"] == "not stated"
    assert rows(card(teacher="torchvision:resnet18"), "Teacher")["source"].endswith("torchvision")
    assert "PyTorch module" in rows(card(teacher="module:me.Net"), "Teacher")["source"]
    teacher = rows(card(teacher="/home/me/runs/big", teacher_weights="/home/me/a_b.pth"), "Teacher")
    assert (teacher["name"], teacher["weights"]) == ("big", r"a\_b.pth, a file")
    assert teacher["source"].startswith("trained or converted by this toolkit")


def test_settings_without_the_machine_s(card):
    given = {"temperature": 0.04, "output": "/home/me/runs/x", "device": "cuda:1"}
    text = card(momentum=None, milestones=[90, 120], **given)
    assert rows(text, "Settings") == {
        "student": r"timm\:test\_resnet",
        "teacher": "pixels",
        "data": "photos",
        "temperature": "0.04",
        "milestones": r"\[90, 120\]",
    }
    assert "/home" not in text
    assert "# timm\\:test\\_resnet distilled from pixels\n" in text


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (0, "none: the images have no labels"),
        (2, r"2, for the figures alone: c\|0, c\|1"),
        (21, r"c\|19 and 1 more"),
    ],
)
def test_data(card, classes: int, expected: str):
    labels = np.arange(42) % max(classes, 1) if classes else None
    names = [f"c|{label}" for label in range(classes)] or None
    images = ArrayImages(np.zeros((42, 8, 8), np.uint8), labels, names, name="x/train")
    data = ImageData("x", images, None, native_size=8, horizontal_flip=False)
    said = rows(card(data), "Data")
    assert said["classes"].endswith(expected)
    assert (said["images"], said["for training"], said["for validation"]) == ("x", "42", "none")


def test_a_card_names_the_method(card):
    assert "CompRess" in card().partition("## ")[0]
    text = card(method="simreg")
    assert "CompRess" not in text.partition("## ")[0]
    assert r"labels. Method\: SimReg\: regression through an MLP" in text
    text = card(method="supervised", teacher=None)
    assert "with the labels of" in text
    assert "supervised-learning" in text
    assert "## Teacher" not in text
    assert r"Method\: mine." in card(method="mine")  # of a plugin that is not at hand


def test_every_number_has_a_meaning(card):
    """Every name that evaluations and training write, with what a reader is told."""
    meanings = {
        "nn_accuracy_k20_weighted": "weighted vote of the 20 nearest training images",
        "teacher_cluster_alignment": "the teacher: share of the validation images",
        "cluster_alignment_k36_count": "36 clusters",
        "cluster_alignment_r1": "k-means",
        "cluster_nmi": "normalized mutual information",
        "neighbor_agreement_k20": "the teacher's 20 nearest images",
        "linear_accuracy": "linear classifier",
        "linear_accuracy_layer_conv1": "conv1",
        "linear_top5_accuracy": "five",
        "linear_accuracy_labels_0.01": "0.01 of the labels",
        "voc_detection_map_area": "detection",
        "untrained_robustness_gap": "the same network before training: ",
        "residual_information": "nats",
        "lipschitz_sampled": "slope",
        "linear_accuracy@flowers": "on flowers",
        "num_steps": "optimizer steps",
    }
    lines = section(card(metrics=dict.fromkeys(meanings, 0.66213)), "Figures").splitlines()
    plain = [line.replace("\\", "") for line in lines[2:]]
    shown = {line.split(" | ")[0][2:]: line for line in plain}
    missing = [name for name, words in meanings.items() if words not in shown[name]]
    assert not missing


def test_what_is_no_number_is_left_out_and_an_unknown_one_has_no_meaning(card):
    metrics = {"nn_accuracy": 0.66213, "num_steps": 12345, "surprise": 2.0, "teacher_surprise": 1.0}
    metrics |= {"note": "x", "ok": True, "nested": {"a": 1}}
    text = card(metrics=metrics)
    figures = section(text, "Figures")
    assert r"| nn\_accuracy | 0.6621 |" in figures
    assert r"| num\_steps | 12,345 |" in figures
    assert "| surprise | 2 |  |" in figures
    assert not any(name in figures for name in ("note", "ok", "nested"))
    front = yaml.safe_load(text.split("---")[1])
    assert front["model-index"][0]["results"][0]["metrics"] == [
        {"type": "accuracy", "name": "nn_accuracy", "value": 0.66213}
    ]
    assert "metrics" not in yaml.safe_load(card().split("---")[1])
