"""What evaluations share: images embedded once, data, output, teacher, meanings of numbers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

import distill
from distill.config import TeacherOptions
from distill.errors import DistillError
from distill.evaluation.base import (
    EVALUATIONS,
    ReferenceTeacherOptions,
    describe_metric,
    evaluate,
    reference_teacher,
    teacher_of_run,
)
from distill.models.networks import EmbeddingNetwork, wrap_module
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from students.registry import build_student


def metrics_of(name: str, run: Path, **options) -> dict:
    return evaluate(name, run, num_workers=0, **options).metrics


@pytest.fixture(autouse=True)
def cold_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The numbers of images that were embedded, but for the one that tells the width."""
    numbers, forward = [], EmbeddingNetwork.forward

    def counted(self, images):
        if hasattr(self, "embedding_dim"):
            numbers.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(EmbeddingNetwork, "forward", counted)
    return numbers


def test_images_are_embedded_once(
    make_folder, tmp_path: Path, seen, cold_cache: Path, make_student
):
    student, data = make_student(tmp_path), make_folder()
    first = metrics_of("nn", student, data=str(data))
    assert sum(seen) == 36 + 12
    assert metrics_of("nn", student, data=str(data)) == first
    metrics_of("clusters", student, data=str(data))
    assert sum(seen) == 36 + 12
    names = sorted(path.name.rpartition("-")[0] for path in cold_cache.iterdir())
    assert names == ["timm-test_resnet-photos-train", "timm-test_resnet-photos-val"]
    metrics_of("nn", make_student(tmp_path, seed=1), data=str(data))
    assert sum(seen) == 2 * (36 + 12)


def test_a_folder_of_one_s_own(make_folder, tmp_path: Path, cold_cache: Path, make_student):
    student, data, kept = make_student(tmp_path), make_folder(), tmp_path / "kept"
    metrics_of("nn", student, data=str(data), cache=kept, cache_dtype="fp32")
    assert sorted(path.name for path in kept.iterdir()) == ["train", "val"]
    assert not cold_cache.exists()
    make_student(tmp_path, seed=1)
    with pytest.raises(DistillError, match=r"holds other embeddings than asked for \(weights: "):
        metrics_of("nn", student, data=str(data), cache=kept, cache_dtype="fp32")


def test_what_is_stored_measures_as_what_is_not(make_folder, tmp_path: Path):
    data = make_folder(num_train=20, num_val=10)
    result = distill.train(
        teacher="pixels",
        student="timm:test_resnet",
        image_size=32,
        num_workers=0,
        batch_size=8,
        epochs=1,
        precision="bf16",
        data=str(data),
        output=tmp_path / "run",
    )
    trained = result.metrics
    # bfloat16 has fewer digits than float16, so that nothing is lost.
    measured = metrics_of("nn", tmp_path / "run") | metrics_of("clusters", tmp_path / "run")
    both = ("nn_accuracy", "cluster_alignment")
    assert {name: measured[name] for name in both} == {name: trained[name] for name in both}


def test_nothing_is_embedded_in_vain(make_folder, tmp_path: Path, seen, make_student):
    student = make_student(tmp_path)
    with pytest.raises(DistillError, match="no validation images"):
        metrics_of("nn", student, data=str(make_folder(num_val=0)))
    with pytest.raises(DistillError, match=r"clusters is 99, .* training images, 36$"):
        metrics_of("clusters", student, data=str(make_folder("other")), num_clusters=99)
    assert seen == []


def test_numbers_go_to_the_run(make_folder, tmp_path: Path, make_student):
    run = RunDirectory(tmp_path / "run", resume=False)
    make_student(run.path)
    run.close()
    found = metrics_of("nn", run.path, data=str(make_folder()), output=tmp_path / "elsewhere")
    assert read_metrics(tmp_path / "elsewhere") == found


def test_data_that_are_not_named_are_the_runs_own(make_folder, tmp_path: Path, make_student):
    run, folder = tmp_path / "run", make_folder() / "train" / "class0"
    RunDirectory(run, resume=False).close()
    make_student(run)
    shard = tmp_path / "shots-000.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    pattern = f"{tmp_path}/shots-{{000..000}}.tar"
    (run / "config.yaml").write_text(f"command: train\ndata: '{pattern}'\n")
    options = {"agreement": True, "teacher": "pixels", "k": 1}
    for named in ({}, {"data": pattern}):
        assert list(metrics_of("nn", run, **options, **named)) == ["neighbor_agreement_k1"]


def test_foreign_weights_are_seen_as_their_authors_evaluate_them(
    make_folder, tmp_path: Path, make_student
):
    network = build_student("timm:resnet18")
    assert network.input.crop_fraction == 0.95
    assert build_student("alexnet").input.crop_fraction == 0.875
    assert build_student("timm:resnet18", crop_fraction=1.0).input.crop_fraction == 1.0
    own = make_student(tmp_path)  # says by itself what it is
    with pytest.raises(DistillError, match="records its own architecture and size; leave out"):
        metrics_of("nn", own, student="timm:test_resnet", data=str(make_folder()))


def test_numbers_of_other_data_do_not_replace_those_of_the_runs_own(
    make_folder, tmp_path: Path, make_student
):
    run = tmp_path / "run"
    RunDirectory(run, resume=False).close()
    make_student(run)
    own, other = make_folder("photos"), make_folder("Flowers")
    (run / "config.yaml").write_text(f"command: train\ndata: {own}\n")
    at_home = metrics_of("nn", run)
    assert list(at_home) == ["nn_accuracy"]
    moved = own.rename(tmp_path / "moved")  # its parent's name does not matter, its own does
    (tmp_path / "elsewhere").mkdir()
    moved = moved.rename(tmp_path / "elsewhere" / "photos")
    assert metrics_of("nn", run, data=str(moved)) == at_home
    abroad = metrics_of("nn", run, data=str(other), k=5)
    assert list(abroad) == ["nn_accuracy_k5@Flowers"]
    assert read_metrics(run) == at_home | abroad


RUN = {
    "teacher": "timm:resnet50",
    "teacher_weights": "old.safetensors",
    "teacher_cache": "cache",
    "teacher_image_size": None,
    "cache_dtype": "bf16",
    "student": "resnet18",
    "image_size": 64,
}
ITS_OWN = TeacherOptions(
    teacher="timm:resnet50",
    teacher_weights=Path("old.safetensors"),
    teacher_cache=Path("cache"),
    cache_dtype="bf16",
)


@pytest.fixture
def run_of_teacher(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"command": "train", **RUN}))
    return tmp_path / "run"


def test_the_runs_own_options_find_its_cache(run_of_teacher):
    assert teacher_of_run(RUN) == ITS_OWN
    assert reference_teacher(run_of_teacher, ReferenceTeacherOptions()) == ITS_OWN


def test_weights_that_have_moved_are_named_alone(run_of_teacher):
    found = reference_teacher(
        run_of_teacher, ReferenceTeacherOptions(teacher_weights=Path("new.safetensors"))
    )
    assert found.teacher == "timm:resnet50"
    assert found.teacher_weights == Path("new.safetensors")
    assert found.teacher_cache == Path("cache")


def test_a_folder_for_the_runs_images_is_not_for_others(run_of_teacher):
    assert (
        reference_teacher(run_of_teacher, ReferenceTeacherOptions(data="flowers")).teacher_cache
        is None
    )


def test_another_teacher_has_nothing_of_the_run(run_of_teacher):
    assert reference_teacher(
        run_of_teacher, ReferenceTeacherOptions(teacher="pixels")
    ) == TeacherOptions("pixels")


def test_a_teacher_that_looked_at_the_students_view_is_as_large(run_of_teacher):
    assert teacher_of_run({**RUN, "teacher_view": "student"}).teacher_image_size == 64
    assert teacher_of_run({**RUN, "teacher_view": "center"}).teacher_image_size is None


def test_none_is_none_and_options_of_none_are_refused(tmp_path):
    assert teacher_of_run({"method": "byol"}) is None
    weights = tmp_path / "w.pth"
    assert reference_teacher(weights, ReferenceTeacherOptions()) is None
    with pytest.raises(DistillError, match=r"need a teacher, and .*w.pth names none; add --teac"):
        reference_teacher(weights, ReferenceTeacherOptions(teacher_image_size=32))


def test_older_names_and_data_have_a_meaning():
    for name in ("neighbour_agreement_k1", "nn_accuracy_k5_ivf", "nn_recall_ivf", "num_steps"):
        assert describe_metric(name) is not None
    whole = describe_metric("untrained_nn_accuracy_k5_weighted@flowers")
    assert whole.words.startswith("the same network before training: share of the validation im")
    assert whole.words.endswith(
        "a weighted vote of the 5 nearest training images by cosine; on flowers"
    )
    assert (whole.unit, whole.larger_is_better) == ("share of 1", True)
    assert describe_metric("train_seconds").larger_is_better is False
    for name in ("nn_accuracies", "my_nn_accuracy", "nn_accuracy_k", ""):
        assert describe_metric(name) is None


def test_every_evaluation_says_what_a_command_needs():
    for name, evaluation in EVALUATIONS.items():
        assert evaluation.name == name
        assert evaluation.METRICS
        assert evaluation.__doc__
        assert f"  distill {name} " in evaluation.examples
        evaluation.check(evaluation.Options(data="photos"))


def test_unknown_evaluations_and_options(tmp_path):
    with pytest.raises(DistillError, match="did you mean 'clusters'"):
        evaluate("cluster", tmp_path)
    with pytest.raises(DistillError, match=r"distill.evaluate\('nn'\) has an unknown option 'kk'"):
        evaluate("nn", tmp_path, kk=3)


def test_a_dataset_and_a_module_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 255, size=(24, 3, 8, 8), dtype=np.uint8))
    halves = [TensorDataset(part, torch.arange(12) % 2) for part in pixels.split(12)]
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    save_network(wrap_module(module, image_size=8), tmp_path / "student.safetensors")
    empty = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    options = {"data": tuple(halves), "num_workers": 0}
    result = evaluate("nn", tmp_path / "student.safetensors", module=empty, **options)
    assert 0 <= result.metrics["nn_accuracy"] <= 1
    torch.testing.assert_close(empty[1].weight, module[1].weight)
    with pytest.raises(DistillError, match="module"):
        evaluate("nn", tmp_path / "student.safetensors", **options)
