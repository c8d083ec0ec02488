"""A network's embeddings of a dataset on disk: which folders they lie in, what must be in them.

Training, `distill cache` and every evaluation come here, so that one finds what another made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from distill import distributed
from distill.cache_folder import cache_folder
from distill.config import CacheDtype, TeacherOptions
from distill.data.images import Images
from distill.data.transforms import default_augmentation
from distill.embedding_cache import EmbeddingStore, EmbeddingTable
from distill.embedding_cache.manifest import Contents
from distill.engine.run_directory import versions
from distill.evaluation.cached import CachedEmbeddings, cached_embeddings
from distill.evaluation.fill_cache import CacheTask
from distill.evaluation.network_view import NetworkView
from distill.evaluation.stored import StoredEmbeddings, stored
from distill.jobs.evaluator import Evaluator, Split
from distill.jobs.images import BadImages
from distill.networks import EmbeddingNetwork
from distill.weights_hash import weights_hash
from teachers import load_teacher

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
    _tables: dict[str, EmbeddingTable] = field(default_factory=dict, init=False)

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

    def stored(self, split: Split, index: np.ndarray | None = None) -> StoredEmbeddings:
        """Return the embeddings of images of a split, by `embeddings` when first asked for.

        Args:
            split: Which images.
            index: Which of them; None: those of the evaluator.
        """
        images, readable = self.evaluator.split(split)
        if split not in self._tables:
            self._tables[split] = self.embeddings(split).table
        return stored(self._tables[split], images, readable if index is None else index)

    def is_complete(self, split: Split) -> bool:
        """Say whether all embeddings of a split lie on the disk already; nothing is written."""
        store = EmbeddingStore.find(self.task(split, view=0).folder)
        return store is not None and bool(store.done().all())

    def task(self, split: Split, *, view: int) -> CacheTask:
        """Say what must be in a cache, and where it lies."""
        images, _ = self.evaluator.split(split)
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
