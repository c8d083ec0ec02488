from __future__ import annotations

from dataclasses import replace

import torch

from distill.config import updated
from distill.training import train as initialization
from distill.training.configuration import TrainConfig
from distill.training.setup import prepare
from distill.training.train import initialize_student


def test_training_images_scale_the_student_alike_every_time(make_folder, monkeypatch):
    monkeypatch.setattr(initialization, "_NUM_IMAGES", 5)
    options = {"teacher": "pixels", "student": "timm:test_resnet", "image_size": 32}
    options |= {"data": str(make_folder(num_train=20)), "num_workers": 0}
    job = prepare(updated(TrainConfig(), options, source="the test"), torch.device("cpu"))
    before = {name: value.clone() for name, value in job.network.state_dict().items()}
    initialize_student(job)
    first = {name: value.clone() for name, value in job.network.state_dict().items()}
    assert any(not torch.equal(first[name], before[name]) for name in before)
    job.network.load_state_dict(before)
    initialize_student(job)
    again = job.network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    job.network.load_state_dict(before)
    other = replace(job, config=replace(job.config, run=replace(job.config.run, seed=1)))
    initialize_student(other)
    different = other.network.state_dict()
    assert any(not torch.equal(first[name], different[name]) for name in first)
