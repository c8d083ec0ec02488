"""The images of a job: what `--data` names, which are held out, which can be read.

A name, whatever its case, is one of `DATASETS`; what contains a path separator, starts with "." or
"~", or exists on disk is a folder (layouts: `distill.data.folders`), so that a folder that happens
to be called `digits` is written `./digits`; what ends in .tar or is a URL is tar shards. A program
may also give a torch `Dataset`, see `open_data_object`.

A part of the training images is held out, class by class and the same for the same seed. Images
that cannot be read end the job or are skipped, up to a bound; small sets are decoded once before
training begins, in threads (Pillow releases the interpreter's lock while it decodes).

Limits: ImageNet cannot be downloaded and is read as a folder; of STL10 the labeled part is used;
some corrupt JPEGs decode to a wrong picture, which no reader notices.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill import distributed
from distill.config import ImageOptions
from distill.data.folders import read_splits
from distill.data.images import ArrayImages, FolderImages, Images
from distill.data.objects import ObjectImages, class_path
from distill.data.shards import TarImages, expanded, is_local, matching
from distill.data.workers import num_usable_cores
from distill.device import require_torchvision
from distill.errors import BadImageError, DistillError, UnknownNameError
from distill.files import cache_folder
from distill.terminal import progress_bar

logger = logging.getLogger(__name__)

_OBJECT = "dataset:"  # before the class of a dataset that a program gave
_LARGEST_NATIVE_SIZE = 96  # pixels
_NUM_TRAIN_DIGITS = 1437
_SHARD_ENDING = re.compile(r"[-_.]?(\{[^{}]*\}|\*)?\.tar$")
_CHEAP_COUNT = 20_000
_CHEAP_BYTES = 256 * 2**20
_CHUNK = 64  # images that a thread checks at a time
_LEAST_BOUND = 10  # bad images


@dataclass(frozen=True)
class ImageData:
    """A dataset: images to learn from and, where there are any, images to validate on.

    Attributes:
        name: What to call it.
        train: The training images.
        val: The validation images, labeled by the classes of `train`; None where there are none.
        native_size: Side in pixels where all images are small squares of one size, else None.
        horizontal_flip: Whether a mirrored image still shows the same thing.
        source: Of an object, "dataset:" and its class, which a configuration records; else None.
    """

    name: str
    train: Images
    val: Images | None
    native_size: int | None = None
    horizontal_flip: bool = True
    source: str | None = None


def data_or_default(spec: str | None) -> str:
    """Return `spec`; without one what DISTILL_DATA names, else the embedded digits, saying so."""
    if spec is not None:
        return spec
    named = os.environ.get("DISTILL_DATA")
    if named is not None:
        logger.info(f"no --data: using DISTILL_DATA, {named}")
        return named
    logger.info("no --data: showing the pipeline on scikit-learn's 1,797 digits")
    return "digits"


def open_images(spec: str | Path, *, download_root: Path | None = None) -> ImageData:
    """Open a dataset by name or path.

    >>> data = open_images("digits")
    >>> len(data.train), len(data.val), data.train.classes[:3]
    (1437, 360, ('0', '1', '2'))

    Args:
        spec: "digits", "CIFAR10", "CIFAR100", "STL10" or "ImageNet" in any case, a folder, or tar
            shards: a pattern that ends in .tar, or the folder or URL where train*.tar lie.
        download_root: Where torchvision datasets are kept; by default the environment variable
            DISTILL_DATA_ROOT, else data/ in the cache folder (`distill.files`).

    Returns:
        The dataset, images not yet decoded.

    Raises:
        UnknownNameError: Neither a known name nor a path.
        DistillError: The folder is missing or in no known layout, or the download failed.
    """
    if isinstance(spec, str) and spec.startswith(_OBJECT):
        raise DistillError(
            f"{spec} is a dataset that a program gave, which no name opens again; give the object "
            "itself as data= in Python, or name a folder with --data"
        )
    if isinstance(spec, str) and _looks_like_shards(spec):
        return _open_shards(spec)
    open_named = _NAMED.get(spec.lower()) if isinstance(spec, str) else None
    if open_named is not None:
        root = download_root or os.environ.get("DISTILL_DATA_ROOT") or cache_folder() / "data"
        return open_named(Path(os.path.expanduser(root)))
    if isinstance(spec, str) and not _looks_like_path(spec):
        raise UnknownNameError(
            "dataset", spec, DATASETS, "a folder of images is given by its path, as in ./photos"
        )
    return _open_folder(Path(os.path.expanduser(spec)))


def open_data_object(
    data: Any,
    *,
    data_key: str | None = None,
    name: str | None = None,
    num_workers: int | None = None,
) -> ImageData:
    """Open a torch `Dataset` of (image, label) or of images alone, or a pair (train, val) of them.

    Images are PIL images or uint8 tensors (3, H, W), (1, H, W) or (H, W), without random
    transforms and without normalization; labels are integers, class names, or None. Every item is
    read once, see `distill.data.objects`.

    >>> import torch
    >>> pixels = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    >>> dataset = torch.utils.data.TensorDataset(pixels, torch.arange(20) % 2)
    >>> data = open_data_object((dataset, dataset), name="black")
    >>> len(data.train), data.val.classes, data.native_size, data.train.load(3).size
    (20, ('0', '1'), 8, (8, 8))

    Args:
        data: The dataset, or a tuple of two; the second may be None.
        data_key: A text that stands for the content, such as "photos of May, cleaned"; what was
            computed from these images is found again by it. None: a hash of all decoded pixels.
        name: What to call it; None: its class.
        num_workers: Processes that read the items; None: as many as load images later.

    Returns:
        The dataset. `native_size` is that of the images where they are squares of at most 96
        pixels, all of one size; a mirrored image counts as the same thing: for digits or signs
        train with `augmentation="crop"`.

    Raises:
        DistillError: It is no such dataset, or its items change between two reads.
    """
    train, val = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if data_key == "":
        raise DistillError("data_key is empty; give a text that names the content, or leave it out")
    source = name or class_path(train)
    name = name or type(train).__name__
    train_images = ObjectImages(
        train, name=f"{name}/train", data_key=data_key, num_workers=num_workers
    )
    val_images = None
    if val is not None:
        val_images = ObjectImages(
            val,
            name=f"{name}/val",
            data_key=None if data_key is None else f"{data_key} (validation)",
            classes=train_images.classes or (),
            num_workers=num_workers,
        )
    width, height = min(train_images.sizes)
    is_small = len(train_images.sizes) == 1 and width == height <= _LARGEST_NATIVE_SIZE
    return ImageData(
        name,
        train_images,
        val_images,
        native_size=width if is_small else None,
        source=_OBJECT + source,
    )


def fingerprints(data: ImageData) -> dict[str, str]:
    """Return the fingerprint of each split that there is; see `distill.data.images`."""
    splits = {"train": data.train, "val": data.val}
    return {name: images.fingerprint() for name, images in splits.items() if images is not None}


def default_augmentation(data: ImageData) -> str:
    """Return the augmentation that suits the data: "crop" where a mirrored image means another."""
    return "crop-flip" if data.horizontal_flip else "crop"


def default_pretraining_augmentation(data: ImageData) -> str:
    """Return what suits the data: "glyph" where a mirrored image means another, else "photo"."""
    return "photo" if data.horizontal_flip else "glyph"


def _looks_like_path(spec: str) -> bool:
    has_separator = os.sep in spec or (os.altsep or os.sep) in spec
    return bool(spec) and (has_separator or spec[0] in ".~" or os.path.exists(spec))


def _open_folder(path: Path) -> ImageData:
    known = f"--data takes a folder of images or one of {', '.join(DATASETS)}"
    if not path.exists():
        raise DistillError(f"no such folder: {path}; {known}")
    if not path.is_dir():
        raise DistillError(f"{path} is a file, not a folder; {known}")
    if any(path.glob("train*.tar")):
        return _open_shards(str(path))
    path = Path(os.path.abspath(path))  # "." has no name, and the working directory may change
    train, val = read_splits(path)
    return ImageData(path.name, train, val)


def _looks_like_shards(spec: str) -> bool:
    return spec.endswith(".tar") or not is_local(spec)


def _open_shards(spec: str) -> ImageData:
    """Open what a pattern stands for, or train*.tar and val*.tar of a folder."""
    name = _SHARD_ENDING.sub("", spec.rstrip("/")).rsplit("/", 1)[-1] or "shards"
    if spec.endswith(".tar"):
        return ImageData(name, TarImages(expanded(spec), name=name), None)
    train = TarImages(expanded(f"{spec.rstrip('/')}/train*.tar"), name=f"{name}/train")
    urls = matching(f"{spec.rstrip('/')}/val*.tar")
    val = TarImages(urls, name=f"{name}/val") if urls else None
    if val is not None and val.labels is not None:
        num_classes = 0 if train.classes is None else len(train.classes)
        if val.labels.max() >= num_classes:
            raise DistillError(
                f"{val.name} has an image of class {val.labels.max()}, and {train.name} has "
                f"{num_classes} classes; validation images are of the classes of training"
            )
        val.classes = train.classes
    return ImageData(name, train, val)


def _open_digits(_: Path) -> ImageData:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, split 1,437 / 360 at random."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    classes = [str(digit) for digit in bunch.target_names]

    def part(name: str, rows: np.ndarray) -> ArrayImages:
        return ArrayImages(pixels[rows], bunch.target[rows], classes, name=name)

    train = part("digits/train", order[:_NUM_TRAIN_DIGITS])
    val = part("digits/val", order[_NUM_TRAIN_DIGITS:])
    return ImageData("digits", train, val, native_size=8, horizontal_flip=False)


def _open_imagenet(root: Path) -> ImageData:
    folder = root / "imagenet"
    if not folder.is_dir():
        raise DistillError(
            f"ImageNet cannot be downloaded: put its train/ and val/ class folders in {folder}, "
            "or give their folder as --data"
        )
    return _open_folder(folder)


def _open_torchvision(name: str, option: str, train: Any, val: Any, root: Path) -> ImageData:
    """Open a torchvision dataset, downloading it when it is not there yet.

    Args:
        name: Of its class in torchvision.
        option: Argument of the class that takes the split.
        train: Value of the argument for training images.
        val: Value of the argument for validation images.
        root: Folder of downloads.
    """
    require_torchvision()
    from torchvision import datasets

    def images(split: str, value: Any) -> ArrayImages:
        arguments = {"root": root, option: value}
        try:
            dataset = getattr(datasets, name)(download=False, **arguments)
        except RuntimeError:  # not found or corrupted: torchvision checks the files' MD5
            try:
                dataset = getattr(datasets, name)(download=True, **arguments)
            except (OSError, RuntimeError) as error:
                archive = getattr(getattr(datasets, name), "url", "its archive")
                raise DistillError(
                    f"cannot download {name} ({error}): get {archive} elsewhere and put it in "
                    f"{root}, or point DISTILL_DATA_ROOT to where it is"
                ) from error
        if name == "STL10":  # (N, 3, H, W)
            pixels, labels = dataset.data.transpose(0, 2, 3, 1), dataset.labels
        else:
            pixels, labels = dataset.data, dataset.targets
        return ArrayImages(pixels, labels, dataset.classes, name=f"{name}/{split}")

    train_images = images("train", train)
    size = train_images.pixels.shape[1]
    return ImageData(name, train_images, images("val", val), native_size=size)


_NAMED: dict[str, Callable[[Path], ImageData]] = {
    "digits": _open_digits,
    "cifar10": partial(_open_torchvision, "CIFAR10", "train", True, False),
    "cifar100": partial(_open_torchvision, "CIFAR100", "train", True, False),
    "stl10": partial(_open_torchvision, "STL10", "split", "train", "test"),
    "imagenet": _open_imagenet,
}
DATASETS = ("digits", "CIFAR10", "CIFAR100", "STL10", "ImageNet")


def hold_out(images: Images, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a part of the images, the same for the same seed.

    With labels every class gives its share, rounded so that the total is right; a class keeps at
    least one image in training as long as others can give instead.

    Args:
        images: N images.
        fraction: The part to hold out, in [0, 1). Above 0, both parts get at least one image where
            there are two.
        seed: At least 0.

    Returns:
        Indices that remain and indices held out: int64, sorted, disjoint, N together.

    Raises:
        DistillError: `fraction` outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise DistillError(f"the held-out fraction is {fraction}; it must be in [0, 1)")
    num_images = len(images)
    generator = np.random.default_rng(seed)
    labels = np.zeros(num_images, np.int64) if images.labels is None else images.labels
    counts = np.bincount(labels)
    wanted = 0 if fraction == 0 else max(1, round(fraction * num_images))
    shares = _shares(counts, fraction, min(wanted, num_images - 1), generator)
    by_class, rank_in_class = drawn_by_class(labels, generator)
    is_held = rank_in_class < shares[labels[by_class]]
    return np.sort(by_class[~is_held]), np.sort(by_class[is_held])


def drawn_by_class(
    labels: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle images within their classes.

    Args:
        labels: (N,) classes, at least 0.
        generator: Draws the order.

    Returns:
        Positions, class by class, and the rank of each in its class, from 0; (N,) int64 both.
    """
    shuffled = generator.permutation(len(labels))
    counts = np.bincount(labels)
    first_of_class = np.repeat(np.cumsum(counts) - counts, counts)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return by_class, np.arange(len(labels)) - first_of_class


def _shares(
    counts: np.ndarray, fraction: float, total: int, generator: np.random.Generator
) -> np.ndarray:
    """Distribute `total` over classes of sizes `counts` by the method of largest remainders."""
    if total <= 0:
        return np.zeros_like(counts)
    quotas = fraction * counts
    shares = np.minimum(np.floor(quotas).astype(np.int64), np.maximum(counts - 1, 0))
    would_empty_class = counts - shares <= 1
    order = np.lexsort((generator.random(len(counts)), shares - quotas, would_empty_class))
    shares[order[: max(0, total - shares.sum())]] += 1
    return shares


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training job.

    Attributes:
        data: The dataset.
        train_index: The training images that can be read.
        val_index: The validation images that can be read.
        trained: Those of `train_index` that are trained on.
        held_out: Those that are not.
        bad_images: What happens to images that cannot be read.
    """

    data: ImageData
    train_index: np.ndarray
    val_index: np.ndarray
    trained: np.ndarray
    held_out: np.ndarray
    bad_images: BadImages


def training_images(data: ImageData, options: ImageOptions, *, seed: int) -> TrainingImages:
    """Find the readable images of a dataset and hold a part of the training images out.

    Raises:
        BadImageError: An image that cannot be read, when that is to end the job.
        DistillError: Fewer than two images are left to train on.
    """
    bad_images = BadImages(options.on_bad_image, options.max_bad_images)
    readable = bad_images.good_indices(data.train)
    trained, held_out = hold_out(data.train, options.holdout, seed=seed)
    trained, held_out = np.intersect1d(trained, readable), np.intersect1d(held_out, readable)
    if len(trained) < 2:
        raise DistillError(
            f"{data.name} leaves {len(trained)} images to train on, at least 2 are needed; name a "
            "folder with more images or lower --holdout"
        )
    val_index = bad_images.good_indices(data.val)
    return TrainingImages(data, readable, val_index, trained, held_out, bad_images)


class BadImages:
    """Fails at the first image that cannot be read, or counts and skips them, up to a bound.

    Args:
        policy: `fail` or `skip`.
        most: How many may be skipped; None: a hundredth of the images, and at least ten. More are
            no accident: a mount that went away, a folder of something else.
    """

    def __init__(self, policy: Literal["fail", "skip"], most: int | None = None) -> None:
        self.policy = policy
        self.skipped: set[str] = set()
        self._most, self._num_images = most, 0

    @property
    def most(self) -> int:
        """How many may be skipped."""
        return max(_LEAST_BOUND, self._num_images // 100) if self._most is None else self._most

    def expect(self, num_images: int) -> None:
        """Count images of which some may be skipped."""
        self._num_images += num_images

    def good_indices(self, images: Images | None) -> np.ndarray:
        """Return the images to use, int64: where that is cheap they are decoded to find out.

        Otherwise all are taken, unseen. No images give no indices.

        Raises:
            BadImageError: Policy `fail` and an image that cannot be read, more of them than may be
                skipped, or none that can be read.
        """
        if images is None:
            return np.arange(0)
        self.expect(len(images))
        everything = np.arange(len(images))
        if not scan_is_cheap(images):
            return everything
        bad = unreadable_images(images)
        if not bad:
            return everything
        errors = list(bad.values())
        if len(bad) == len(images):
            raise BadImageError(f"{errors[0]}; none of the {len(images):,} images can be read")
        if self.policy == "fail":
            raise BadImageError(
                f"{errors[0]}; {len(bad):,} of {len(images):,} images cannot be read: repair or "
                "remove them, or pass --on-bad-image skip to leave them out"
            )
        self([images.describe(i) for i in bad])
        return np.setdiff1d(everything, list(bad))

    def __call__(self, descriptions: Sequence[str]) -> None:
        """Receive the names of images that could not be read.

        Raises:
            BadImageError: Policy `fail` and at least one name, or more of them than may be skipped.
        """
        if descriptions and self.policy == "fail":
            raise BadImageError(
                f"{descriptions[0]} cannot be read as an image; remove it, or pass "
                "--on-bad-image skip"
            )
        self._add(set(descriptions))

    def share(self) -> None:
        """Let every rank know what any of them skipped; all ranks call it together."""
        self._add(distributed.all_gather_set(self.skipped))

    def recall(self, descriptions: Sequence[str]) -> None:
        """Count what the run skipped before it was resumed, and has named already."""
        self.skipped.update(descriptions)

    def _add(self, descriptions: set[str]) -> None:
        for description in sorted(descriptions - self.skipped):
            logger.info(f"skipped {description}: cannot be read as an image")
            self.skipped.add(description)
            if len(self.skipped) > self.most:
                raise BadImageError(
                    f"{len(self.skipped)} images cannot be read, the last of them {description}, "
                    f"and at most {self.most} may be skipped; look what happened to them, or pass "
                    "--max-bad-images"
                )


def scan_is_cheap(images: Images) -> bool:
    """Tell whether decoding all images takes seconds and may find some that cannot be read.

    That is at most 20,000 images of 256 MiB together on a disk. Images in memory can be read, and
    those of an object have been.
    """
    if images.in_memory or isinstance(images, ObjectImages) or len(images) > _CHEAP_COUNT:
        return False
    if isinstance(images, TarImages):
        return images.is_local and images.num_bytes() <= _CHEAP_BYTES
    return not isinstance(images, FolderImages) or images.num_bytes() <= _CHEAP_BYTES


def unreadable_images(images: Images) -> dict[int, BadImageError]:
    """Decode all images, in threads; return what is wrong with those that cannot be decoded."""

    def errors_among(chunk: range) -> dict[int, BadImageError]:
        errors = {}
        for i in chunk:
            try:
                images.load(i)
            except BadImageError as error:
                errors[i] = error
        return errors

    starts = range(0, len(images), _CHUNK)
    chunks = [range(len(images))[start : start + _CHUNK] for start in starts]
    bad: dict[int, BadImageError] = {}
    with (
        ThreadPoolExecutor(num_usable_cores()) as pool,
        progress_bar(len(images), description="checking images", delay=1.0) as bar,
    ):
        for chunk, errors in zip(chunks, pool.map(errors_among, chunks), strict=True):
            bad |= errors
            bar.update(len(chunk))
    return bad
