"""What a model card says of a run, without running anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.data.sources import ImageData
from distill.exports.provenance import FinishedRun, card_facts
from distill.models.networks import EmbeddingNetwork
from students.registry import build_student


@pytest.fixture(scope="module")
def network() -> EmbeddingNetwork:
    return build_student("timm:test_resnet", image_size=32).eval()


def facts(network: EmbeddingNetwork, tmp_path: Path, data: ImageData | None = None, **options: Any):
    given = {"student": "timm:test_resnet", "teacher": "pixels", "data": "/home/me/photos"}
    run = FinishedRun(
        path=tmp_path,
        command="train",
        options={**given, **options},
        versions={"torch": "2.0"},
        weights=tmp_path / "student.safetensors",
        network=network,
    )
    return card_facts(run, data, license_name="MIT")


def teacher(network: EmbeddingNetwork, tmp_path: Path, name: str, **options: Any) -> dict[str, str]:
    return dict(facts(network, tmp_path, teacher=name, **options).teacher)


def test_a_published_teacher_with_its_terms(network, tmp_path):
    for name in ("r50-mocov2", "moco-v2"):
        rows = teacher(network, tmp_path, name)
        assert rows["license of its weights"] == "CC-BY-NC-4.0"
        assert rows["paper"] == "[arXiv 2003.04297](https://arxiv.org/abs/2003.04297)"
        assert rows["linear accuracy on ImageNet"].startswith("0.711 as its authors state it")
        assert rows["published at"].startswith("<https://dl.fbaipublicfiles.com/moco/")


def test_teachers_of_libraries(network, tmp_path):
    rows = teacher(network, tmp_path, "timm:resnet50.a1_in1k")
    assert rows["source"] == "a model of timm"
    assert rows["license of its weights"] == "apache-2.0"
    assert "[arXiv 2110.00476](https://arxiv.org/abs/2110.00476)" in rows.values()
    assert teacher(network, tmp_path, "torchvision:resnet18")["source"] == "a model of torchvision"
    rows = teacher(network, tmp_path, "timm:gone_from_timm")
    assert rows["license of its weights"] == "not stated"


def test_teachers_of_one_s_own_and_files(network, tmp_path):
    rows = teacher(network, tmp_path, "/home/me/runs/big", teacher_weights="/home/me/a_b.pth")
    assert rows["name"] == "big"
    assert rows["weights"] == r"a\_b.pth, a file"
    assert rows["source"].startswith("trained or converted by this toolkit")
    assert "paper" not in teacher(network, tmp_path, "digits-cbyol")


def test_settings_without_the_machine_s(network, tmp_path):
    found = facts(
        network,
        tmp_path,
        temperature=0.04,
        output="/home/me/runs/x",
        device="cuda:1",
        momentum=None,
        milestones=[90, 120],
        queue_size=1000,
    )
    assert dict(found.settings) == {
        "student": r"timm\:test\_resnet",
        "teacher": "pixels",
        "data": "photos",
        "temperature": "0.04",
        "milestones": r"\[90, 120\]",
        r"queue\_size": "1000",
    }
    assert "/home" not in str(found)
    assert found.dataset == "photos"
    assert found.title == "timm:test_resnet distilled from pixels"


def images(num: int, classes: int) -> ArrayImages:
    pixels = np.zeros((num, 8, 8), np.uint8)
    labels = np.arange(num) % max(classes, 1)
    names = [f"c|{label}" for label in range(classes)]
    return ArrayImages(pixels, labels if classes else None, names or None, name="x/train")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (0, "none: the images have no labels"),
        (2, r"2, for the figures alone: c\|0, c\|1"),
        (21, r"c\|19 and 1 more"),
        (20, r"c\|19"),
    ],
)
def test_data(network, tmp_path, classes: int, expected: str):
    data = ImageData("x", images(42, classes), None, native_size=8, horizontal_flip=False)
    rows = dict(facts(network, tmp_path, data).data)
    assert rows["classes"].endswith(expected)
    assert (rows["images"], rows["for training"], rows["for validation"]) == ("x", "42", "none")


def test_a_card_names_the_method_and_a_supervised_student_s_labels(network, tmp_path):
    found = facts(network, tmp_path)
    assert "by CompRess" in found.summary
    found = facts(network, tmp_path, method="simreg")
    assert "CompRess" not in found.summary
    assert "Method simreg: SimReg: regression through an MLP" in found.summary
    found = facts(network, tmp_path, method="supervised", teacher=None)
    assert "with the labels of" in found.summary
    assert found.teacher == ()
    assert "supervised-learning" in found.tags
