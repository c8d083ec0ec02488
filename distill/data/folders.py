"""Image files in folders: a folder per class, or unlabeled.

Layout: `train/CLASS/**/image` and optionally `val/CLASS/**/image`; labels follow the code-point
order of the class names, files the order of their relative paths. A folder without `train/`, or a
`train/` without class folders, is read as unlabeled images.

Limits: names that start with "." are skipped, extensions decide what an image is, and nothing is
opened: a broken link with an image's name is listed, so that checking or loading it reports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.images import FolderImages
from distill.errors import DistillError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")

_MISNAMED = {"train": ("training",), "val": ("valid", "validation")}


def read_splits(root: Path) -> tuple[FolderImages, FolderImages | None]:
    """Read a data folder.

    Args:
        root: An existing folder, in one of the layouts above.

    Returns:
        The training images and, where there is `val/`, the validation images.

    Raises:
        DistillError: No images, empty class folders, validation classes that training does not
            have, or a layout that can be understood in two ways.
    """
    _refuse_misnamed(root, "train")
    if not (root / "train").is_dir():
        return read_unlabeled(root, name=root.name), None
    _refuse_misnamed(root, "val")
    classes = class_folders(root / "train")

    def read(split: str) -> FolderImages:
        folder, name = root / split, f"{root.name}/{split}"
        if classes:
            return read_class_folders(folder, classes, name=name)
        return read_unlabeled(folder, name=name)

    return read("train"), read("val") if (root / "val").is_dir() else None


def read_unlabeled(folder: Path, *, name: str) -> FolderImages:
    """Take all images at any depth below `folder`, without labels.

    Raises:
        DistillError: There are none.
    """
    files = list_images(folder)
    if not files:
        raise DistillError(
            f"no images in {folder}: looked at any depth for {', '.join(EXTENSIONS)}"
        )
    return FolderImages(folder, files, name=name)


def read_class_folders(folder: Path, classes: Sequence[str], *, name: str) -> FolderImages:
    """Take the images at any depth below each class folder, labeled by the position in `classes`.

    Args:
        folder: Holds the class folders; not all of `classes` need to be there.
        classes: Every class name there may be.
        name: What to call the set.

    Raises:
        DistillError: A class folder that is not in `classes` or holds no image, or no class folder.
    """
    present = class_folders(folder)
    extra = sorted(set(present) - set(classes))
    if extra:
        raise DistillError(f"classes in {folder} that train/ does not have: {_some(extra)}")
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    files: list[str] = []
    counts = []
    for class_name in present:
        below = list_images(folder / class_name)
        files += [f"{class_name}/{file}" for file in below]
        counts.append(len(below))
    if not files:
        raise DistillError(
            f"no images in class folders of {folder}: looked at any depth below them"
        )
    empty = [class_name for class_name, count in zip(present, counts, strict=True) if not count]
    if empty:
        raise DistillError(
            f"class folders without images in {folder}: {_some(empty)}; fill or remove them"
        )
    labels = np.repeat([label_of[class_name] for class_name in present], counts)
    return FolderImages(folder, files, labels, classes, name=name)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in code-point order.

    Raises:
        DistillError: Images lie beside them, or the folder cannot be listed.
    """
    entries = _entries(folder)
    classes = sorted(entry.name for entry in entries if _is_folder(entry))
    loose = sorted(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS))
    loose = [name for name in loose if name not in classes]
    if classes and loose:
        raise DistillError(
            f"{folder} holds class folders and, beside them, {len(loose)} images ({_some(loose)}): "
            "move the images into class folders, or away"
        )
    return classes


def list_images(folder: str | Path) -> list[str]:
    """Return the image files at any depth below `folder`, relative to it, in code-point order.

    Links are followed; a folder reached a second time, as through a link to its parent, is not
    entered again.

    Raises:
        DistillError: A folder cannot be listed.
    """
    files: list[str] = []
    entered = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        here = os.path.join(folder, prefix)
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        below = []
        for entry in _entries(here):
            if _is_folder(entry):
                below.append(f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS) and (
                entry.is_symlink() or entry.is_file()
            ):
                files.append(prefix + entry.name)
        # Popped from the end: which of two links to one folder is entered must not depend on the
        # file system's order.
        pending += sorted(below, reverse=True)
    return sorted(files)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """List a folder without its hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DistillError(f"cannot list the folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _refuse_misnamed(root: Path, split: str) -> None:
    """Refuse a folder that has, in place of `split`, a folder whose name nearly says so."""
    if (root / split).is_dir():
        return
    for entry in _entries(root):
        if entry.name.lower() in (split, *_MISNAMED[split]) and _is_folder(entry):
            raise DistillError(
                f"{root} has {entry.name}/ where {split}/ is expected: rename it, or link it with "
                f"ln -s {entry.name} {root / split}"
            )


def _some(names: Sequence[str], limit: int = 5) -> str:
    """Name the first few, and say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
