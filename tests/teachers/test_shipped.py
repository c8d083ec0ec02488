"""What is shipped is what its sums say, and what its metrics say."""

import hashlib
import json

import torch

from distill.config import ImageOptions
from distill.data.sources import open_images, training_images
from distill.training.setting import evaluator_of
from teachers.load import load_teacher
from teachers.registry import SHIPPED

FOLDER = SHIPPED / "digits-cbyol"


def test_the_files_are_whole_and_small():
    for line in (FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
    assert (FOLDER / "backbone.safetensors").stat().st_size <= 3 * 2**20


def test_the_teacher_is_as_good_as_it_was():
    images = training_images(open_images("digits"), ImageOptions(holdout=0.0), seed=0)
    evaluator = evaluator_of(images, device=torch.device("cpu"), precision="fp32", num_workers=0)
    measured = evaluator.measure(load_teacher("digits-cbyol"), what="teacher")
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert abs(measured["nn_accuracy"] - metrics["nn_accuracy"]) < 2 / 360  # rounding may decide
    assert measured["nn_accuracy"] > metrics["untrained_nn_accuracy"] + 0.05
