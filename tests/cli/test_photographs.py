"""The main job on real photographs with a real network.

Needs DISTILL_TEST_DATA, a folder with train/ and val/ class folders of photographs, and
DISTILL_TEST_TEACHER, a weights file of timm's tf_efficientnet_lite0.
"""

import os
from pathlib import Path

import pytest

import distill

DATA, TEACHER = (os.environ.get(f"DISTILL_TEST_{name}") for name in ("DATA", "TEACHER"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA and TEACHER), reason="DISTILL_TEST_DATA and _TEACHER are not set")
def test_a_student_learns_from_photographs(tmp_path: Path):
    result = distill.train(
        teacher="timm:tf_efficientnet_lite0",
        teacher_weights=TEACHER,
        student="resnet18",
        data=DATA,
        image_size=64,
        epochs=2,
        output=tmp_path / "run",
    )
    metrics = result.metrics
    assert metrics["nn_accuracy"] > metrics["untrained_nn_accuracy"] + 0.1
    assert metrics["teacher_nn_accuracy"] > metrics["nn_accuracy"]
    again = distill.evaluate("nn", tmp_path / "run").metrics
    assert again["nn_accuracy"] == metrics["nn_accuracy"]
