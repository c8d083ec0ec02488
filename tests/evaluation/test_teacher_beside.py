"""Which teacher stands beside a student, and where its embeddings lie."""

from pathlib import Path

import pytest
import yaml

from distill.config import TeacherOptions
from distill.errors import DistillError
from distill.evaluation.base import ReferenceTeacherOptions, reference_teacher, teacher_of_run

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
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"command": "train", **RUN}))
    return tmp_path / "run"


def test_the_runs_own_options_find_its_cache(run):
    assert teacher_of_run(RUN) == ITS_OWN
    assert reference_teacher(run, ReferenceTeacherOptions()) == ITS_OWN


def test_weights_that_have_moved_are_named_alone(run):
    found = reference_teacher(run, ReferenceTeacherOptions(teacher_weights=Path("new.safetensors")))
    assert found.teacher == "timm:resnet50"
    assert found.teacher_weights == Path("new.safetensors")
    assert found.teacher_cache == Path("cache")


def test_a_folder_for_the_runs_images_is_not_for_others(run):
    assert reference_teacher(run, ReferenceTeacherOptions(data="flowers")).teacher_cache is None


def test_another_teacher_has_nothing_of_the_run(run):
    assert reference_teacher(run, ReferenceTeacherOptions(teacher="pixels")) == TeacherOptions(
        "pixels"
    )


def test_a_teacher_that_looked_at_the_students_view_is_as_large(run):
    assert teacher_of_run({**RUN, "teacher_view": "student"}).teacher_image_size == 64
    assert teacher_of_run({**RUN, "teacher_view": "center"}).teacher_image_size is None


def test_none_is_none_and_options_of_none_are_refused(tmp_path):
    assert teacher_of_run({"method": "byol"}) is None
    weights = tmp_path / "w.pth"
    assert reference_teacher(weights, ReferenceTeacherOptions()) is None
    with pytest.raises(DistillError, match=r"need a teacher, and .*w.pth names none; add --teac"):
        reference_teacher(weights, ReferenceTeacherOptions(teacher_image_size=32))
