"""Compose images in PASCAL VOC layout from a folder of class folders.

    python tools/make_mosaics.py photos mosaics --num-train 1000 --num-test 500

Each image is a canvas, a strongly blurred photograph, with one to three photographs on it at random
sizes and places; each of them is an object of its class, with its box. With them classification
and detection can be run from end to end, and networks compared, without VOC. They are not real
scenes: objects are rectangles, a few of which overlap at a corner. Photographs of
train/ make the `trainval` list, those of val/ the `test` list.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageFilter

CANVAS = (320, 240)
SIDES = (72, 160)  # of an object, in pixels
MAX_OBJECTS = 3
SPLITS = {"trainval": "train", "test": "val"}

Box = tuple[int, int, int, int]


def main() -> None:
    """Write JPEGImages, Annotations and ImageSets/Main under OUTPUT/VOC2007."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--num-train", type=int, default=1000)
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    numbers = {"trainval": arguments.num_train, "test": arguments.num_test}
    make_mosaics(arguments.photos, arguments.output, numbers, seed=arguments.seed)


def make_mosaics(photos: Path, output: Path, numbers: dict[str, int], *, seed: int) -> Path:
    """Compose a dataset; return its VOC2007 folder, which must not exist yet.

    Args:
        photos: Folder with train/ and val/ class folders.
        output: Where VOC2007 is made.
        numbers: Images of `trainval` and of `test`.
        seed: Of everything that is drawn.
    """
    root = output / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=part != "JPEGImages")
    rng = np.random.default_rng(seed)
    for split, number in numbers.items():
        files = sorted(path for path in (photos / SPLITS[split]).glob("*/*") if path.is_file())
        names = [f"{split}{i:06d}" for i in range(number)]
        for name in names:
            canvas, objects = compose(files, rng)
            canvas.save(root / "JPEGImages" / f"{name}.jpg", quality=92)
            annotate(root / "Annotations" / f"{name}.xml", f"{name}.jpg", objects)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    return root


def compose(
    files: list[Path], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Return a canvas with the class and the box of every object, pixels counted from 1."""
    back, *objects = rng.choice(len(files), 1 + rng.integers(1, MAX_OBJECTS + 1), replace=False)
    canvas = Image.open(files[back]).convert("RGB").resize(CANVAS)
    canvas = canvas.filter(ImageFilter.GaussianBlur(24))
    found: list[tuple[str, Box]] = []
    for number in objects:
        box = free_place([box for _, box in found], rng)
        if box is None:
            continue
        left, top, right, bottom = box
        size = (right - left + 1, bottom - top + 1)
        canvas.paste(Image.open(files[number]).convert("RGB").resize(size), (left - 1, top - 1))
        found.append((files[number].parent.name, box))
    return canvas, found


def free_place(taken: list[Box], rng: np.random.Generator) -> Box | None:
    """Return a box that hides at most a corner of the others; None when none was found."""
    for _ in range(20):
        width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
        left = int(rng.integers(1, CANVAS[0] - width + 2))
        top = int(rng.integers(1, CANVAS[1] - height + 2))
        box = (left, top, left + width - 1, top + height - 1)
        if all(hidden_share(other, box) < 0.05 for other in taken):
            return box
    return None


def hidden_share(box: Box, by: Box) -> float:
    """Return what share of a box another one covers."""
    width = min(box[2], by[2]) - max(box[0], by[0]) + 1
    height = min(box[3], by[3]) - max(box[1], by[1]) + 1
    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    return max(0, width) * max(0, height) / area


def annotate(file: Path, image: str, objects: list[tuple[str, Box]]) -> None:
    """Write one image's objects as VOC does."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = image
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*CANVAS, 3), strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    for name, box in objects:
        one = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(one, "name").text = name
        ElementTree.SubElement(one, "difficult").text = "0"
        bounds = ElementTree.SubElement(one, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(bounds, key).text = str(value)
    ElementTree.ElementTree(root).write(file)


if __name__ == "__main__":
    main()
