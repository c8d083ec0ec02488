"""Opens what `--data` names: the embedded digits, a torchvision dataset, a folder or tar shards.

A spec that is a known name, whatever its case, is that dataset; one that contains a path
separator, starts with "." or "~", or exists on disk is a folder (layouts: `distill.data.folders`).
A folder that happens to be called `digits` is therefore written `./digits`. Deliberate limits:
ImageNet cannot be downloaded and is read as a folder; of STL10 the labelled part is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from distill.cache_folder import cache_folder
from distill.data.folders import read_splits
from distill.data.images import ArrayImages, Images, TorchvisionImages
from distill.data.shards import expanded, is_local, matching
from distill.data.tar_images import TarImages
from distill.errors import DistillError, UnknownNameError

_NUM_TRAIN_DIGITS = 1437
_NAME_OF_SHARDS = re.compile(r"[-_.]?(\{[^{}]*\}|\*)?\.tar$")


@dataclass(frozen=True)
class ImageData:
    """A dataset: images to learn from and, where there are any, images to validate on.

    Attributes:
        name: what to call it.
        train: the training images.
        val: the validation images, labelled by the classes of `train`; None where there are none.
        native_size: side in pixels where all images are small squares of one size, else None.
        horizontal_flip: whether a mirrored image still shows the same thing.
    """

    name: str
    train: Images
    val: Images | None
    native_size: int | None
    horizontal_flip: bool


def open_images(spec: str | Path, *, download_root: Path | None = None) -> ImageData:
    """Open a dataset by name or path.

    Args:
        spec: "digits", "CIFAR10", "CIFAR100", "STL10" or "ImageNet" in any case, a folder, or tar
            shards: a pattern that ends in .tar, or the folder or URL where train*.tar lie.
        download_root: where torchvision datasets are kept; by default the environment variable
            DISTILL_DATA_ROOT, else data/ in the cache folder (`distill.cache_folder`).

    Returns:
        The dataset, images not yet decoded.

    Raises:
        UnknownNameError: neither a known name nor a path.
        DistillError: the folder is missing or in no known layout, or the download failed.
    """
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


def fingerprints(data: ImageData) -> dict[str, str]:
    """Return the fingerprint of each split that there is; see `distill.data.fingerprint`."""
    splits = {"train": data.train, "val": data.val}
    return {name: images.fingerprint() for name, images in splits.items() if images is not None}


def hold_out(images: Images, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a part of the images, the same for the same seed.

    With labels every class gives its share, rounded so that the total is right; a class keeps at
    least one image in training as long as others can give instead.

    Args:
        images: N images.
        fraction: the part to hold out, in [0, 1). Above 0, both parts get at least one image where
            there are two.
        seed: at least 0.

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
    return ImageData(path.name, train, val, native_size=None, horizontal_flip=True)


def _looks_like_shards(spec: str) -> bool:
    return spec.endswith(".tar") or not is_local(spec)


def _open_shards(spec: str) -> ImageData:
    """Open what a pattern stands for, or train*.tar and val*.tar of a folder."""
    name = _NAME_OF_SHARDS.sub("", spec.rstrip("/")).rsplit("/", 1)[-1] or "shards"
    if spec.endswith(".tar"):
        train = TarImages(expanded(spec), name=name)
        return ImageData(name, train, None, native_size=None, horizontal_flip=True)
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
    return ImageData(name, train, val, native_size=None, horizontal_flip=True)


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


def _open_cifar(name: str, root: Path) -> ImageData:
    train = _torchvision_split(name, "train", root, train=True)
    val = _torchvision_split(name, "val", root, train=False)
    return ImageData(name, train, val, native_size=32, horizontal_flip=True)


def _open_stl10(root: Path) -> ImageData:
    train = _torchvision_split("STL10", "train", root, split="train")
    val = _torchvision_split("STL10", "val", root, split="test")
    return ImageData("STL10", train, val, native_size=96, horizontal_flip=True)


def _open_imagenet(root: Path) -> ImageData:
    folder = root / "imagenet"
    if not folder.is_dir():
        raise DistillError(
            f"ImageNet cannot be downloaded: put its train/ and val/ class folders in {folder}, "
            "or give their folder as --data"
        )
    return _open_folder(folder)


def _torchvision_split(name: str, part: str, root: Path, **split: object) -> TorchvisionImages:
    """Open one split of a torchvision dataset, downloading it when it is not there yet."""
    from torchvision import datasets

    dataset_class = getattr(datasets, name)
    try:
        dataset = dataset_class(root, download=False, **split)
    except RuntimeError:  # not found or corrupted: torchvision checks the files' MD5
        dataset = _download(dataset_class, root, split)
    return TorchvisionImages(dataset, name=f"{name}/{part}")


def _download(dataset_class: type, root: Path, split: dict[str, object]) -> object:
    try:
        return dataset_class(root, download=True, **split)
    except (OSError, RuntimeError) as error:
        archive = getattr(dataset_class, "url", "its archive")
        raise DistillError(
            f"cannot download {dataset_class.__name__} ({error}): get {archive} elsewhere and put "
            f"it in {root}, or point DISTILL_DATA_ROOT to where it is"
        ) from error


_NAMED: dict[str, Callable[[Path], ImageData]] = {
    "digits": _open_digits,
    "cifar10": partial(_open_cifar, "CIFAR10"),
    "cifar100": partial(_open_cifar, "CIFAR100"),
    "stl10": _open_stl10,
    "imagenet": _open_imagenet,
}
DATASETS = ("digits", "CIFAR10", "CIFAR100", "STL10", "ImageNet")
