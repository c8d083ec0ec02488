"""Datasets in the layout of PASCAL VOC: images with boxes, in lists called splits.

    VOCdevkit/VOC2007/JPEGImages/000005.jpg
                      Annotations/000005.xml
                      ImageSets/Main/trainval.txt    one name a line, without extension

Source: Everingham et al., IJCV 2010. The classes are those that the training split's objects have,
whatever their number, in alphabetical order. An image shows a class (1) when one object of it is
not difficult, does not show it (-1) without an object of it, and is ignored for the class (0) when
all its objects of the class are difficult: what the class lists of VOC2007 state, read from the
annotations. Boxes stay as they are written: whole pixels counted from 1, the last one belongs to
the box.

Annotations may come from anywhere, so they are read with care: at most 4 MiB, no document type
(which is where entities are defined), elements of the VOC layout only.

Limits: all annotations are in memory; parts of objects (heads, hands), poses, segmentation and
actions are not read.

Shapes: N images, C classes, G objects of an image.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from distill.data.folders import EXTENSIONS
from distill.data.images import FolderImages
from distill.data.sources import ImageData
from distill.errors import DistillError, UnknownNameError
from distill.files import is_file_name
from distill.terminal import progress_bar

_PARTS = ("JPEGImages", "Annotations", "ImageSets/Main")
_PREFERRED = "VOC2007"
_FLAG = re.compile(r"\s+-?[01]$")  # after the name, in the lists of one class
_MAX_BYTES = 4 * 2**20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        names: G class names.
        corners: float64 (G, 4), xmin, ymin, xmax, ymax; whole pixels from 1, the last included.
        difficult: bool (G,).
        classes: int64 (G,), positions of the names among the dataset's classes; of a single
            annotation 0 to G - 1.
    """

    names: tuple[str, ...]
    corners: np.ndarray
    difficult: np.ndarray
    classes: np.ndarray


class VocImages(FolderImages):
    """The images of one split, with their objects; `labels` is None, an image has any number.

    Args:
        root: The folder VOC2007 or the like.
        files: N paths relative to `root`.
        objects: Of every image.
        object_classes: C class names.
        name: See `Images`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        objects: Sequence[Objects],
        object_classes: Sequence[str],
        *,
        name: str,
    ) -> None:
        super().__init__(root, files, name=name)
        self.objects = tuple(objects)
        self.object_classes = tuple(object_classes)

    def presence(self) -> np.ndarray:
        """Return int8 (N, C): 1 the image shows the class, -1 it does not, 0 difficult only."""
        table = np.full((len(self), len(self.object_classes)), -1, dtype=np.int8)
        for i, objects in enumerate(self.objects):
            table[i, objects.classes[objects.difficult]] = 0
            table[i, objects.classes[~objects.difficult]] = 1
        return table


def open_voc(
    data: str | Path, *, train_split: str = "trainval", test_split: str = "test"
) -> ImageData:
    """Open two splits of a VOC dataset; both sets of images are `VocImages`.

    Args:
        data: VOCdevkit, the folder above it, a year's folder in it, or any folder of that layout.
        train_split: List that is learned from.
        test_split: List that is measured on.

    Raises:
        DistillError: No such folder or split, another layout, an image or annotation that is
            missing or damaged, no objects, or a class that only the test split has.
    """
    root = _find_root(Path(os.path.expanduser(data)))
    stored = _stored_images(root)
    names = {split: _read_list(root, split) for split in (train_split, test_split)}
    files = {split: [_file(root, stored, split, one) for one in names[split]] for split in names}
    objects = {split: _read_annotations(root, names[split]) for split in names}
    classes = sorted({name for image in objects[train_split] for name in image.names})
    if not classes:
        raise DistillError(
            f"{root} has no objects in the {len(names[train_split])} images of {train_split}; name "
            "another list with --train-split"
        )

    def images(split: str) -> VocImages:
        numbered = []
        for image, one in zip(names[split], objects[split], strict=True):
            unknown = sorted(set(one.names) - set(classes))
            if unknown:
                raise DistillError(
                    f"{root / 'Annotations' / image}.xml of {split} has a {unknown[0]}, a class "
                    f"that no training image has; training has {', '.join(classes)}: correct the "
                    "name, or add such images to the training list"
                )
            numbers = np.array([classes.index(name) for name in one.names], dtype=np.int64)
            numbered.append(replace(one, classes=numbers))
        return VocImages(root, files[split], numbered, classes, name=f"{root.name}/{split}")

    return ImageData(root.name, train=images(train_split), val=images(test_split))


def _find_root(folder: Path) -> Path:
    """Find the folder that has JPEGImages, Annotations and ImageSets/Main."""
    if not folder.is_dir():
        raise DistillError(f"no folder at {folder}; name a VOCdevkit folder with --data")
    if _is_root(folder):
        return folder
    devkit = folder / "VOCdevkit" if (folder / "VOCdevkit").is_dir() else folder
    if _is_root(devkit):
        return devkit
    years = sorted(entry for entry in devkit.iterdir() if entry.is_dir() and _is_root(entry))
    preferred = [year for year in years if year.name == _PREFERRED]
    if len(preferred or years) == 1:
        return (preferred or years)[0]
    if years:
        names = ", ".join(year.name for year in years)
        raise DistillError(f"{devkit} holds {names}; name one of them with --data")
    missing = ", ".join(part for part in _PARTS if not (folder / part).is_dir())
    raise DistillError(
        f"{folder} is not in VOC layout: it lacks {missing}; name the folder that holds "
        f"{', '.join(_PARTS)}, or the VOCdevkit above it"
    )


def _is_root(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in _PARTS)


def _read_list(root: Path, split: str) -> list[str]:
    """Read the names of a split's images, each once."""
    lists = root / "ImageSets" / "Main"
    known = [file.stem for file in lists.glob("*.txt")]
    if split not in known:
        whole = [name for name in known if "_" not in name]  # the others are of one class each
        raise UnknownNameError(
            "split", split, whole, f"a split is a list {lists}/NAME.txt", unlisted=known
        )
    path = lists / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{path} cannot be read as a list of names ({error})") from None
    names = [_FLAG.sub("", line.strip()) for line in lines if line.strip()]
    if not names:
        raise DistillError(f"{path} lists no image; name another list, or fill this one")
    for name in names:
        if not is_file_name(name):
            raise DistillError(f"{path} lists {name!r}; it must list names without folders")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DistillError(f"{path} lists {twice} more than once; leave it there once")
    return names


def _stored_images(root: Path) -> dict[str, str]:
    """Return the image files by name without extension."""
    files = sorted(entry.name for entry in (root / "JPEGImages").iterdir())
    return {Path(file).stem: file for file in files if file.lower().endswith(EXTENSIONS)}


def _file(root: Path, stored: dict[str, str], split: str, name: str) -> str:
    if name not in stored:
        raise DistillError(
            f"{root / 'JPEGImages' / name}.jpg is missing, which ImageSets/Main/{split}.txt lists; "
            "add the image or take it out of the list"
        )
    return f"JPEGImages/{stored[name]}"


def _read_annotations(root: Path, names: Sequence[str]) -> list[Objects]:
    annotations = []
    with progress_bar(len(names), description="annotations", unit="file", delay=1.0) as bar:
        for name in names:
            annotations.append(read_annotation(root / "Annotations" / f"{name}.xml"))
            bar.update()
    return annotations


def read_annotation(path: Path) -> Objects:
    """Read an annotation file.

    Raises:
        DistillError: It is missing, too long, no XML, of another layout, or a box has no area.
    """
    elements = _annotation_element(path).findall("object")
    try:
        names = tuple(_text(element, "name") for element in elements)
        corners = [_corners(element) for element in elements]
        difficult = [_is_difficult(element) for element in elements]
    except _LayoutError as problem:
        raise DistillError(
            f"{path} is not a VOC annotation: {problem}; repair the file, or take its image out of "
            "the lists in ImageSets/Main"
        ) from None
    return Objects(
        names,
        np.array(corners, np.float64).reshape(-1, 4),
        np.array(difficult, dtype=bool),
        np.arange(len(names)),
    )


def _annotation_element(path: Path) -> ElementTree.Element:
    """Parse a file that may come from anywhere."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DistillError(
            f"{path} cannot be read ({error.strerror or error}): every listed image needs an "
            "annotation; add it, or take the image out of the lists in ImageSets/Main"
        ) from None
    if len(content) > _MAX_BYTES:
        raise DistillError(
            f"{path} is longer than {_MAX_BYTES >> 20} MiB, which no annotation of an image is; "
            "replace it by the image's own"
        )
    # In files without zero bytes (UTF-16 has them) all that XML is made of is written in ASCII.
    if b"\0" in content or b"<!doctype" in content.lower():
        raise DistillError(
            f"{path} has a document type or zero bytes, which VOC annotations do not have and "
            "which may make a reader fetch or expand anything; remove the line, save it in UTF-8"
        )
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DistillError(
            f"{path} is no whole XML file ({error}): it may be truncated; copy it again"
        ) from None
    if root.tag != "annotation":
        raise DistillError(
            f"{path} is not a VOC annotation: its root is <{root.tag[:40]}>, it must be "
            "<annotation>; export the dataset in Pascal VOC layout"
        )
    return root


class _LayoutError(Exception):
    """What is wrong with an element."""


def _text(element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise _LayoutError(f"an <object> has no <{name}>")
    return text


def _corners(element: ElementTree.Element) -> list[float]:
    box = element.find("bndbox")
    name = _text(element, "name")
    if box is None:
        raise _LayoutError(f"the {name} has no <bndbox>")
    texts = [(box.findtext(corner) or "").strip() for corner in _CORNERS]
    try:
        xmin, ymin, xmax, ymax = values = [float(text) for text in texts]
    except ValueError:
        raise _LayoutError(
            f"the box of the {name} is {', '.join(texts)}, not four numbers"
        ) from None
    if not all(map(math.isfinite, values)) or xmax < xmin or ymax < ymin:
        raise _LayoutError(f"the box of the {name} is {', '.join(texts)}, which has no area")
    return values


def _is_difficult(element: ElementTree.Element) -> bool:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise _LayoutError(
            f"<difficult> of the {_text(element, 'name')} is {text[:40]}, not 0 or 1"
        )
    return text == "1"
