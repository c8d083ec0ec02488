"""Keeps a teacher's embeddings on disk, for the training that follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill import distributed
from distill.config import CacheConfig
from distill.data.sources import BadImages, ImageData, data_or_default, open_images
from distill.device import pick_device, pick_precision
from distill.embeddings.cache import CachedEmbeddings, NetworkCache, load_teacher_of
from distill.embeddings.evaluator import Evaluator, Split
from distill.errors import DistillError
from distill.models.networks import prepare_for_device
from distill.training.configuration import check_caching


@dataclass(frozen=True)
class CachedSplit:
    """One cache.

    Attributes:
        split: `train` or `val`.
        view: 0 for the center crop, from 1 on for random crops.
        folder: Where it lies.
        num_images: N.
        embedding_dim: D.
        dtype: Of the storage.
        num_bytes: On the disk.
        num_embedded: Images that were embedded now; the others were there.
        seconds: That took.
    """

    split: Split
    view: int
    folder: Path
    num_images: int
    embedding_dim: int
    dtype: str
    num_bytes: int
    num_embedded: int
    seconds: float

    @property
    def images_per_second(self) -> float | None:
        """Of this pass, all processes together; None when nothing was embedded."""
        return self.num_embedded / self.seconds if self.num_embedded else None


def cache(config: CacheConfig) -> list[CachedSplit]:
    """Embed images with a teacher, or find that it is done.

    Args:
        config: As it was asked for.

    Returns:
        The caches: training images, their random views, validation images.

    Raises:
        DistillError: A request that cannot be met, or a folder that cannot hold the embeddings.
    """
    check_caching(config)
    device = distributed.start(pick_device(config.run.device))
    try:
        return _cache(config, device)
    finally:
        distributed.stop()


def _cache(config: CacheConfig, device: torch.device) -> list[CachedSplit]:
    data = open_images(data_or_default(config.images.data))
    wanted = _wanted(config, data)
    bad_images = BadImages(config.images.on_bad_image, config.images.max_bad_images)
    for split in dict.fromkeys(split for split, _ in wanted):
        bad_images.expect(len(data.train if split == "train" else data.val or ()))
    caches = NetworkCache(
        network=prepare_for_device(load_teacher_of(config.teacher), device),
        what="teacher",
        evaluator=Evaluator(
            data=data,
            train_index=np.arange(len(data.train)),
            val_index=np.arange(len(data.val or ())),
            device=device,
            precision=pick_precision(config.run.precision, device),
            num_workers=config.images.num_workers,
            batch_size=config.teacher.teacher_batch_size,
            bad_images=bad_images,
        ),
        bad_images=bad_images,
        folder=config.teacher.teacher_cache,
        dtype=config.teacher.cache_dtype,
        seed=config.run.seed,
    )
    return [_described(split, view, caches.embeddings(split, view=view)) for split, view in wanted]


def _wanted(config: CacheConfig, data: ImageData) -> list[tuple[Split, int]]:
    """Return the splits and views to cache.

    Raises:
        DistillError: Validation images alone were asked for, and there are none.
    """
    split, wanted = config.split.split, []
    if split != "val":
        wanted += [("train", view) for view in range(config.teacher.num_teacher_views)]
    if split != "train" and data.val is not None:
        wanted.append(("val", 0))
    if not wanted:
        raise DistillError(f"{data.name} has no validation images; use --split train")
    return wanted


def _described(split: Split, view: int, found: CachedEmbeddings) -> CachedSplit:
    table = found.table
    return CachedSplit(
        split=split,
        view=view,
        folder=table.folder,
        num_images=len(table),
        embedding_dim=table.embedding_dim,
        dtype=table.contents.dtype,
        num_bytes=sum(path.stat().st_size for path in table.folder.iterdir()),
        num_embedded=len(table) - found.num_present,
        seconds=found.seconds,
    )
