"""What a distillation and a pre-training job have in common: images, device, rhythm, length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from distill import distributed
from distill.config import ImageOptions, OptimizationOptions, RunOptions
from distill.data.loader import num_batches
from distill.data.sources import ImageData, TrainingImages, data_or_default, open_images
from distill.data.workers import default_num_workers, require_shared_memory
from distill.embeddings.embed import DatasetEmbedder
from distill.models.networks import EmbeddingNetwork
from distill.run_directory import holds_run, require_usable
from distill.training.configuration import Config, DataFacts, require_resolved, with_output


@dataclass(frozen=True)
class TrainingSetting:
    """Everything about a training run that does not depend on its method.

    Attributes:
        images: What is trained on and what is held out.
        embedder: Data, device and precision, for every measurement of the run.
        network: What is trained and measured, on the device.
        optimization: Resolved.
        run: Resolved.
        drop_last: Whether an epoch's last batch is left out when it is smaller.
        accumulate: Parts that a batch is cut into.
    """

    images: TrainingImages
    embedder: DatasetEmbedder
    network: EmbeddingNetwork
    optimization: OptimizationOptions
    run: RunOptions
    drop_last: bool
    accumulate: int = 1

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return self.embedder.device

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run."""
        return require_resolved(self.optimization.epochs)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        batch_size = require_resolved(self.optimization.batch_size)
        return num_batches(len(self.images.trained), batch_size, drop_last=self.drop_last)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.num_epochs * self.batches_per_epoch


def open_data(
    config: Config, *names: str, given: ImageData | None = None
) -> tuple[Config, ImageData]:
    """Open the images of a job and settle its run directory, named after `names` and the data.

    Args:
        config: As it was asked for.
        *names: Of what the run is made of.
        given: Used in place of the images that `config` names.

    Returns:
        The configuration with data and output filled in, `resume` only where there is a run, and
        the images.

    Raises:
        DistillError: No such data, or a run directory that cannot be written to.
    """
    source = data_or_default(config.images.data)
    config = replace(config, images=replace(config.images, data=source))
    data = open_images(source) if given is None else given
    config = with_output(config, *names, data.name)
    output = require_resolved(config.run.output)
    config = replace(
        config, run=replace(config.run, resume=config.run.resume and holds_run(output))
    )
    require_usable(output, resume=config.run.resume)
    return config, data


def data_facts(images: TrainingImages, *, augmentation: str, min_image_size: int) -> DataFacts:
    """Return what the options of a job follow.

    Args:
        images: Of the job.
        augmentation: That suits the data.
        min_image_size: Smallest side in pixels that the trained network accepts.
    """
    return DataFacts(
        num_images=len(images.trained),
        native_size=images.data.native_size,
        augmentation=augmentation,
        min_image_size=min_image_size,
        default_num_workers=default_num_workers(images.data.train),
    )


def embedder_of(
    images: TrainingImages, *, device: torch.device, precision: str, num_workers: int | None
) -> DatasetEmbedder:
    """Return the embedder of a training job."""
    return DatasetEmbedder(
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
    images, num_ranks = setting.images, distributed.world_size()
    words = (
        f"{len(images.trained):,} images of {images.data.name} and {len(images.held_out):,} held "
        f"out, on {setting.device} in {setting.embedder.precision}"
    )
    if num_ranks == 1:
        return words
    batch_size = require_resolved(setting.optimization.batch_size)
    rate = require_resolved(setting.optimization.learning_rate)
    return (
        f"{words}, batches of {batch_size} images over {num_ranks} processes, learning rate "
        f"{rate:g} at its peak"
    )


def require_room_for_loaders(
    options: ImageOptions, batch_size: int, view_sizes: Sequence[int]
) -> None:
    """Refuse batches that do not fit into shared memory, see `distill.data.loader`."""
    require_shared_memory(
        -(-batch_size // distributed.world_size()),
        view_sizes,
        require_resolved(options.num_workers),
        num_processes=distributed.num_local_ranks(),
    )
