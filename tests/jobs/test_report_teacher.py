from pathlib import Path

from distill.config import TeacherOptions
from distill.jobs.report import ReportOptions
from distill.jobs.report_teacher import _teacher_options

RUN = {
    "teacher": "timm:resnet50",
    "teacher_weights": "old.safetensors",
    "teacher_cache": "cache",
    "teacher_image_size": None,
    "cache_dtype": "bf16",
    "student": "resnet18",
}


def test_the_runs_own_options_find_its_cache():
    assert _teacher_options(RUN, ReportOptions()) == TeacherOptions(
        teacher="timm:resnet50",
        teacher_weights=Path("old.safetensors"),
        teacher_cache=Path("cache"),
        cache_dtype="bf16",
    )


def test_weights_that_have_moved_are_named():
    found = _teacher_options(RUN, ReportOptions(teacher_weights=Path("new.safetensors")))
    assert found.teacher_weights == Path("new.safetensors")
    assert found.teacher_cache == Path("cache")
