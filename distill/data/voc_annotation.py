"""Reads one annotation file of PASCAL VOC: an image's objects, with boxes and difficult flags.

Files may come from anywhere, so they are read with care: at most 4 MiB, no document type (which is
where entities are defined), elements of the VOC layout only. Boxes stay as they are written: whole
pixels counted from 1, the last one belongs to the box. Parts of objects (heads, hands), poses and
other elements are ignored.

Shapes: G objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from distill.errors import DistillError

_MAX_BYTES = 4 * 2**20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        names: G class names.
        corners: float64 (G, 4), xmin, ymin, xmax, ymax as in the file.
        difficult: bool (G,).
    """

    names: tuple[str, ...]
    corners: np.ndarray
    difficult: np.ndarray


def read_annotation(path: Path) -> Annotation:
    """Read an annotation file.

    Raises:
        DistillError: It is missing, too long, no XML, of another layout, or a box has no area.
    """
    objects = _root(path).findall("object")
    try:
        names = tuple(_text(one, "name") for one in objects)
        corners = [_corners(one) for one in objects]
        difficult = [_is_difficult(one) for one in objects]
    except _LayoutError as problem:
        raise DistillError(
            f"{path} is not a VOC annotation: {problem}; repair the file, or take its image out of "
            "the lists in ImageSets/Main"
        ) from None
    return Annotation(
        names, np.array(corners, np.float64).reshape(-1, 4), np.array(difficult, dtype=bool)
    )


class _LayoutError(Exception):
    """What is wrong with an element."""


def _root(path: Path) -> ElementTree.Element:
    root = _parsed(path, _content(path))
    if root.tag != "annotation":
        raise DistillError(
            f"{path} is not a VOC annotation: its root is <{root.tag[:40]}>, it must be "
            "<annotation>; export the dataset in Pascal VOC layout"
        )
    return root


def _content(path: Path) -> bytes:
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
    return content


def _parsed(path: Path, content: bytes) -> ElementTree.Element:
    # In files without zero bytes (UTF-16 has them) all that XML is made of is written in ASCII.
    if b"\0" in content or b"<!doctype" in content.lower():
        raise DistillError(
            f"{path} has a document type or zero bytes, which VOC annotations do not have and "
            "which may make a reader fetch or expand anything; remove the line, save it in UTF-8"
        )
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DistillError(
            f"{path} is no whole XML file ({error}): it may be truncated; copy it again"
        ) from None


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
