"""The quick start's table and words; the run itself is a slow test."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(nn: float, clusters: float) -> dict[str, float]:
    return {
        "teacher_nn_accuracy": 0.99,
        "teacher_cluster_alignment": 0.9,
        "untrained_nn_accuracy": 0.8,
        "untrained_cluster_alignment": 0.6,
        "nn_accuracy": nn,
        "cluster_alignment": clusters,
    }


def test_pixels_find_their_neighbors(demo):
    assert demo.measured_pixels()["nn_accuracy"] == pytest.approx(0.989, abs=5e-4)


def test_the_table_compares_four(demo):
    rows = demo.rows(metrics(0.95, 0.7), {"nn_accuracy": 0.989, "cluster_alignment": 0.65})
    assert [row[1:] for row in rows] == [
        ["0.990", "0.900"],
        ["0.950", "0.700"],
        ["0.800", "0.600"],
        ["0.989", "0.650"],
    ]


def test_the_words_say_what_happened(demo):
    words = demo.verdict(metrics(0.95, 0.55))
    assert "raised nearest neighbor (+0.150)" in words
    assert "did NOT raise cluster alignment (-0.050)" in words


@pytest.mark.slow
def test_the_student_learns_from_the_shipped_teacher(tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, str(TOOL), "--output", str(output)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "student alexnet" in printed
    found = json.loads((output / "metrics.json").read_text())
    assert found["cluster_alignment"] > found["untrained_cluster_alignment"]
    assert found["nn_accuracy"] > found["untrained_nn_accuracy"]
