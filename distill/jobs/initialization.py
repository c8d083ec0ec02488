"""Scales a student's random layers by what they say of training images (--student-init)."""

from __future__ import annotations

import numpy as np

from distill.data.transforms import evaluation_view
from distill.data.views import evaluation_loader
from distill.engine.data_initialization import scale_layers
from distill.jobs.setting import TrainingSetting
from distill.terminal import say

_NUM_IMAGES = 256


def initialize_student(setting: TrainingSetting) -> None:
    """Scale the student's layers over training images chosen by the seed.

    Every process of a job does the same.

    Args:
        setting: Of the job; its network's weights are changed.
    """
    network, images = setting.network, setting.images
    order = np.random.default_rng(setting.run.seed).permutation(images.trained)
    view = evaluation_view(network.input.image_size, crop_fraction=network.input.crop_fraction)
    loader = evaluation_loader(
        images.data.train, view, indices=order[:_NUM_IMAGES], batch_size=_NUM_IMAGES, num_workers=0
    )
    batch = next(iter(loader))
    images.bad_images(batch.bad)
    number = scale_layers(network, batch.view.to(setting.device))
    say(f"{number} layers of the student are scaled over {len(batch.view)} images")
