"""Evaluation of a trained student: its images are embedded once, whatever is measured."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

import distill
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from students.registry import build_student


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


def make_student(folder: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    save_network(build_student("timm:test_resnet", image_size=32), folder / "student.safetensors")
    return folder / "student.safetensors"


def test_images_are_embedded_once(make_folder, tmp_path: Path, seen, cold_cache: Path):
    student, data = make_student(tmp_path), make_folder()
    first = distill.evaluate_nn(student, data=str(data))
    assert sum(seen) == 36 + 12
    assert distill.evaluate_nn(student, data=str(data)) == first
    distill.evaluate_clusters(student, data=str(data))
    assert sum(seen) == 36 + 12
    names = sorted(path.name.rpartition("-")[0] for path in cold_cache.iterdir())
    assert names == ["timm-test_resnet-photos-train", "timm-test_resnet-photos-val"]
    distill.evaluate_nn(make_student(tmp_path, seed=1), data=str(data))
    assert sum(seen) == 2 * (36 + 12)


def test_a_folder_of_one_s_own(make_folder, tmp_path: Path, cold_cache: Path):
    student, data, kept = make_student(tmp_path), make_folder(), tmp_path / "kept"
    distill.evaluate_nn(student, data=str(data), cache=kept, cache_dtype="fp32")
    assert sorted(path.name for path in kept.iterdir()) == ["train", "val"]
    assert not cold_cache.exists()
    make_student(tmp_path, seed=1)
    with pytest.raises(DistillError, match=r"holds other embeddings than asked for \(weights: "):
        distill.evaluate_nn(student, data=str(data), cache=kept, cache_dtype="fp32")


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
    measured = distill.evaluate_nn(tmp_path / "run") | distill.evaluate_clusters(tmp_path / "run")
    both = ("nn_accuracy", "cluster_alignment")
    assert {name: measured[name] for name in both} == {name: trained[name] for name in both}


def test_nothing_is_embedded_in_vain(make_folder, tmp_path: Path, seen):
    student = make_student(tmp_path)
    with pytest.raises(DistillError, match="no validation images"):
        distill.evaluate_nn(student, data=str(make_folder(num_val=0)))
    with pytest.raises(DistillError, match=r"clusters is 99, .* training images, 36$"):
        distill.evaluate_clusters(student, data=str(make_folder("other")), num_clusters=99)
    assert seen == []


def test_numbers_go_to_the_run(make_folder, tmp_path: Path):
    run = RunDirectory(tmp_path / "run", resume=False)
    make_student(run.path)
    run.close()
    found = distill.evaluate_nn(run.path, data=str(make_folder()), output=tmp_path / "elsewhere")
    assert read_metrics(tmp_path / "elsewhere") == found


def test_data_that_are_not_named_are_the_runs_own(make_folder, tmp_path: Path):
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
        assert list(distill.evaluate_nn(run, **options, **named)) == ["neighbor_agreement_k1"]


def test_foreign_weights_are_seen_as_their_authors_evaluate_them(make_folder, tmp_path: Path):
    network = build_student("timm:resnet18")
    assert network.input.crop_fraction == 0.95
    assert build_student("alexnet").input.crop_fraction == 0.875
    assert build_student("timm:resnet18", crop_fraction=1.0).input.crop_fraction == 1.0
    own = make_student(tmp_path)  # says by itself what it is
    with pytest.raises(DistillError, match="brings its own architecture and size; leave out"):
        distill.evaluate_nn(own, student="timm:test_resnet", data=str(make_folder()))


def test_numbers_of_other_data_do_not_replace_those_of_the_runs_own(make_folder, tmp_path: Path):
    run = tmp_path / "run"
    RunDirectory(run, resume=False).close()
    make_student(run)
    own, other = make_folder("photos"), make_folder("Flowers")
    (run / "config.yaml").write_text(f"command: train\ndata: {own}\n")
    at_home = distill.evaluate_nn(run)
    assert list(at_home) == ["nn_accuracy"]
    moved = own.rename(tmp_path / "moved")  # its parent's name does not matter, its own does
    (tmp_path / "elsewhere").mkdir()
    moved = moved.rename(tmp_path / "elsewhere" / "photos")
    assert distill.evaluate_nn(run, data=str(moved)) == at_home
    abroad = distill.evaluate_linear(run, data=str(other), method="logistic")
    assert list(abroad) == ["linear_accuracy_logistic@Flowers"]
    assert read_metrics(run) == at_home | abroad
