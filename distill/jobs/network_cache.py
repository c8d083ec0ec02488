"""A network's embeddings of a dataset on disk: which folders they lie in, what must be in them.

Training, `distill cache` and every evaluation come here, so that one finds what another made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from distill import distributed
from distill.cache_folder import cache_folder
from distill.config import CacheDtype, TeacherOptions
from distill.data.images import Images
from distill.data.transforms import default_augmentation
from distill.embedding_cache import EmbeddingTable
from distill.embedding_cache.manifest import Contents
from distill.engine.run_directory import versions
from distill.evaluation.cached import CachedEmbeddings, cached_embeddings
from distill.evaluation.embed import Embeddings
from distill.evaluation.fill_cache import CacheTask
from distill.evaluation.network_view import NetworkView
from distill.jobs.evaluator import Evaluator
from distill.jobs.images import BadImages
from distill.networks import EmbeddingNetwork
from distill.weights_hash import weights_hash
from teachers import load_teacher

Split = Literal["train", "val"]
_MAX_NAME = 100  # characters; file systems take 255 bytes


@dataclass
class NetworkCache:
    """The caches of one network on one dataset; all ranks use it together.

    Attributes:
        network: On its device; nothing trains it meanwhile.
        what: `teacher` or `student`, for people.
        evaluator: Data, device, precision and sizes of the pass.
        bad_images: Told of images that cannot be read, now or when they were to be embedded.
        folder: Holds a folder for each split and view; None: in the cache folder.
        dtype: Of the storage.
        seed: Of random views.
    """

    network: EmbeddingNetwork
    what: str
    evaluator: Evaluator
    bad_images: BadImages
    folder: Path | None = None
    dtype: CacheDtype = "fp16"
    seed: int = 0

    _fingerprints: dict[str, str] = field(default_factory=dict, init=False)

    @cached_property
    def _weights(self) -> str:
        return distributed.from_main(lambda: weights_hash(self.network))

    def embeddings(self, split: Split, *, view: int = 0) -> CachedEmbeddings:
        """Return the embeddings of all images of a split, after making those that are missing.

        Args:
            split: Which images; there must be some.
            view: 0 for the centre crop, from 1 on for random crops.

        Raises:
            DistillError: See `distill.evaluation.cached.cached_embeddings`.
            BadImageError: An image cannot be read, when that is to end the job.
        """
        task = self.task(split, view=view)
        found = cached_embeddings(self.network, task, self.evaluator.how(task.images))
        self.bad_images(tuple(task.images.describe(int(i)) for i in found.table.bad))
        self.bad_images.share()
        return found

    def task(self, split: Split, *, view: int) -> CacheTask:
        """Say what must be in a cache, and where it lies."""
        images = self._images(split)
        shown = self._view(view)
        contents = self._contents(split, images, shown)
        return CacheTask(
            folder=self._folder(split, shown, contents),
            contents=contents,
            what=self.what,
            images=images,
            view=shown,
            versions=versions(),
        )

    def _images(self, split: Split) -> Images:
        data = self.evaluator.data
        images = data.train if split == "train" else data.val
        assert images is not None
        return images

    def _view(self, number: int) -> NetworkView:
        if number == 0:
            return NetworkView(self.network.input)
        kind = default_augmentation(self.evaluator.data)  # whatever the student's is
        return NetworkView(self.network.input, number, kind, self.seed)

    def _contents(self, split: Split, images: Images, view: NetworkView) -> Contents:
        if split not in self._fingerprints:
            self._fingerprints[split] = distributed.from_main(images.fingerprint)
        return Contents(
            network=self.network.spec.name,
            weights=self._weights,
            view=view.name,
            view_augmentation=view.augmentation,
            view_seed=view.seed,
            image_size=view.input.image_size,
            crop_fraction=view.crop_fraction,
            interpolation=view.input.interpolation,
            mean=view.input.mean,
            std=view.input.std,
            images=images.name,
            image_fingerprint=self._fingerprints[split],
            precision=self.evaluator.precision,
            dtype=self.dtype,
            shape=(len(images), self.network.embedding_dim),
        )

    def _folder(self, split: Split, view: NetworkView, contents: Contents) -> Path:
        suffix = "" if view.number == 0 else f"-view{view.number}"
        if self.folder is not None:
            return self.folder / f"{split}{suffix}"
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{contents.network}-{contents.images}")
        readable = f"{name[:_MAX_NAME]}{suffix}-{contents.key()}"
        return cache_folder() / "embeddings" / readable


def load_teacher_of(options: TeacherOptions) -> EmbeddingNetwork:
    """Load the teacher that looks at views of its own.

    Raises:
        DistillError: See `teachers.load_teacher`.
    """
    return load_teacher(
        str(options.teacher), weights=options.teacher_weights, image_size=options.teacher_image_size
    )


def in_memory(table: EmbeddingTable, images: Images, index: np.ndarray) -> Embeddings:
    """Return the embeddings of some images as a measure takes them, without unreadable images.

    Args:
        table: Of all images of the set.
        images: The set.
        index: Which of them.
    """
    readable = np.setdiff1d(index, table.bad)
    labels = np.full(len(readable), -1) if images.labels is None else images.labels[readable]
    return Embeddings(table.rows(readable).numpy(), labels, readable, ())
