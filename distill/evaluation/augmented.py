"""What linear heads learn from when every step sees new views: the published program's way.

A frozen network embeds a random view (random resized crop and flip) of every image at every step;
mean and variance stay those of the evaluation views. A view follows from (seed, epoch, image), as
in training. Deliberate limit: nothing is kept, so that 40 epochs embed every image 40 times.

Shapes: N training rows, B images of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from distill.data.batch import Batch
from distill.data.epochs import num_batches
from distill.data.images import Images
from distill.data.lasting_batches import lasting_batches
from distill.data.transforms import training_view
from distill.data.views import TrainingViews, training_loader
from distill.engine.device import autocast
from distill.evaluation.embed import Pass
from distill.evaluation.linear_heads import HeadBatch, LinearSchedule
from distill.evaluation.standardize import Standardizer
from distill.networks import EmbeddingNetwork
from distill.terminal import progress_bar


@dataclass(frozen=True)
class AugmentedBatches:
    """Embeds random views of training images; a `distill.evaluation.linear.MakeBatches`.

    Attributes:
        network: Frozen, on the device of `how`; its mode is restored after the batches.
        images: The training images, with labels.
        index: (N,) which image a training row is of.
        how: Device, precision, workers; the batch size is the schedule's.
        augmentation: As `distill.data.transforms.training_view` knows them.
        schedule: Epochs and batch size.
        seed: Of views and order, from 0.
    """

    network: EmbeddingNetwork
    images: Images
    index: np.ndarray
    how: Pass
    augmentation: str
    schedule: LinearSchedule
    seed: int

    def __call__(self, rows: np.ndarray, standardizer: Standardizer) -> Iterator[HeadBatch]:
        """Yield all batches of all epochs over the training rows `rows`.

        Raises:
            BadImageError: From `how.on_bad_images`.
        """
        seen = self.network.input
        view = training_view(
            seen.image_size,
            self.augmentation,
            crop_fraction=seen.crop_fraction,
            interpolation=seen.interpolation,
        )
        views = TrainingViews(self.images, self.index[rows], view, seed=self.seed)
        size = self.schedule.batch_size
        batches_per_epoch = num_batches(len(rows), size, drop_last=False)

        def batches_after(done: int) -> Iterable[Batch]:
            epoch, batch = divmod(done, batches_per_epoch)
            return training_loader(
                views,
                batch_size=size,
                num_epochs=self.schedule.num_epochs,
                start_epoch=epoch,
                start_batch=batch,
                num_workers=self.how.num_workers,
            )

        was_training = self.network.training
        self.network.eval()
        total = self.schedule.num_epochs * len(rows)
        try:
            with progress_bar(total, description="linear, augmented") as bar:
                for batch in lasting_batches(batches_after):
                    if batch.bad and self.how.on_bad_images is not None:
                        self.how.on_bad_images(batch.bad)
                    bar.update(len(batch.index) + len(batch.bad))
                    if len(batch.index):
                        embedded = self._embedded(batch.view)
                        labels = batch.label.to(self.how.device)
                        yield HeadBatch(batch.epoch, standardizer(embedded), labels)
        finally:
            self.network.train(was_training)

    @torch.no_grad()
    def _embedded(self, view: torch.Tensor) -> torch.Tensor:
        with autocast(self.how.device, self.how.precision):
            return self.network(view.to(self.how.device))
