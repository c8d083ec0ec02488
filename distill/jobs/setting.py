"""What a distillation and a pre-training job have in common: images, device, rhythm, length."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.config import OptimizationOptions, RunOptions
from distill.data.epochs import num_batches
from distill.engine.resolve import given
from distill.jobs.evaluator import Evaluator
from distill.jobs.images import TrainingImages
from distill.networks import EmbeddingNetwork


@dataclass(frozen=True)
class TrainingSetting:
    """Everything about a training run that does not depend on its method.

    Attributes:
        images: What is trained on and what is held out.
        evaluator: Data, device and precision, for every measurement of the run.
        network: What is trained and measured, on the device.
        optimization: Resolved.
        run: Resolved.
        drop_last: Whether an epoch's last batch is left out when it is smaller.
        accumulate: Parts that a batch is cut into.
    """

    images: TrainingImages
    evaluator: Evaluator
    network: EmbeddingNetwork
    optimization: OptimizationOptions
    run: RunOptions
    drop_last: bool
    accumulate: int = 1

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return self.evaluator.device

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run."""
        return given(self.optimization.epochs)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        batch_size = given(self.optimization.batch_size)
        return num_batches(len(self.images.trained), batch_size, drop_last=self.drop_last)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.num_epochs * self.batches_per_epoch


def evaluator_of(
    images: TrainingImages, *, device: torch.device, precision: str, num_workers: int | None
) -> Evaluator:
    """Return the evaluator of a training job."""
    return Evaluator(
        data=images.data,
        train_index=images.train_index,
        val_index=images.val_index,
        device=device,
        precision=precision,
        num_workers=num_workers,
        bad_images=images.bad_images,
    )


def describe_setting(setting: TrainingSetting) -> str:
    """Say in words which images are trained on, and where."""
    images = setting.images
    return (
        f"{len(images.trained):,} images of {images.data.name} and {len(images.held_out):,} held "
        f"out, on {setting.device} in {setting.evaluator.precision}"
    )
