"""Matches the names that another dataset uses with the classes of the training images.

Sources of the conventions: ImageNet-A and -R have a folder per WordNet id, as ImageNet itself;
ImageNet-v2 numbers its folders 0 to 999 in the order of the ids; ObjectNet names things in words,
some of which stand for several classes of ImageNet, so that a file must say which. Deliberate
limit: no such file is shipped.

Shapes: F names, C training classes.

Groups of neighboring video frames, as ImageNet-Vid-Robust and YTBB-Robust have them.

Source: Shankar et al., "Do Image Classifiers Generalize Across Time?" (arXiv 1906.02168). A CSV
file lists, for each anchor frame, the frames around it:

    anchor,frame,label[,offset]
    a/12.jpg,a/11.jpg,n02084071
    a/12.jpg,a/12.jpg,n02084071
    a/12.jpg,a/13.jpg,n02084071;n02088364

Paths are relative to the file's folder. Of several labels, with ; between them, each is right.
`offset` is the number of frames from the anchor; without that column the frames of an anchor stand
in the order of time. The anchor itself is among its frames, at offset 0.

Images of known classes from elsewhere: ImageNet-A, -R, -v2, ObjectNet as class folders.

Deliberate limits: folders as they are unpacked, nothing is downloaded, and ObjectNet's red border
of one pixel is not cut off (the evaluation crop leaves it out, unless its crop fraction is 1).
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.folders import class_folders, read_class_folders
from distill.data.images import FolderImages, Images
from distill.errors import DistillError, nearest_match
from distill.parsing import parse_json

ClassMap = Mapping[str, Sequence[str]]
"""The training classes that a name stands for, by name."""

_HEADER = ["name", "class"]
# ImageNet's 1,000 classes in the order of their WordNet ids begin and end with these.
_NUM_IMAGENET_CLASSES, _FIRST, _LAST = 1000, "n01440764", "n15075141"


def read_class_map(file: Path) -> ClassMap:
    """Read what names stand for.

    Args:
        file: JSON, an object of name to class or list of classes; or CSV with the columns name and
            class, a row for each pair.

    Raises:
        DistillError: No such file, or another content.
    """
    read = {".json": _read_json, ".csv": _read_csv}.get(file.suffix.lower())
    if read is None:
        raise DistillError(f"the class map {file} must be a .json or a .csv file")
    try:
        return read(file)
    except OSError as error:
        raise DistillError(f"cannot read the class map {file}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise DistillError(
            f"the class map {file} is not understood ({error}); it must be a JSON object of name "
            "to class or list of classes, or a CSV file with the columns name,class"
        ) from error


def match_classes(
    names: Sequence[str], classes: Sequence[str], class_map: ClassMap | None, *, what: str
) -> np.ndarray:
    """Say which training classes every name stands for.

    Without a map a name is a training class; numbers from 0 on are ImageNet's classes in the order
    of their WordNet ids when the training images are of all of them.

    Args:
        names: F names of another dataset.
        classes: C training classes by label.
        class_map: What names stand for; names that are not in it, or stand for no training class,
            are left out.
        what: Whose names, for messages.

    Returns:
        bool (F, C); a row without True for a name that is left out.

    Raises:
        DistillError: A name that is no training class, or no name that is left.
    """
    if class_map is None:
        class_map = _numbered(names, classes) or {name: [name] for name in classes}
        _refuse_unknown(names, class_map, what=what)
    label_of = {name: label for label, name in enumerate(classes)}
    accepted = np.zeros((len(names), len(classes)), dtype=bool)
    for row, name in enumerate(names):
        for wanted in class_map.get(name, ()):
            if wanted in label_of:
                accepted[row, label_of[wanted]] = True
    if not accepted.any():
        raise DistillError(
            f"the class map maps no class of {what} to a training class, such as "
            f"{classes[0]!r}; correct the file"
        )
    return accepted


def is_imagenet(classes: Sequence[str]) -> bool:
    """Say whether class names are ImageNet's WordNet ids, going by their number and two of them."""
    in_order = sorted(classes)
    return len(in_order) == _NUM_IMAGENET_CLASSES and (in_order[0], in_order[-1]) == (_FIRST, _LAST)


def _numbered(names: Sequence[str], classes: Sequence[str]) -> ClassMap | None:
    """Return what numbers stand for, None where the names are not numbers of ImageNet's classes."""
    if not is_imagenet(classes) or not all(re.fullmatch(r"[0-9]{1,3}", name) for name in names):
        return None
    in_order = sorted(classes)
    return {name: [in_order[int(name)]] for name in names}


def _refuse_unknown(names: Sequence[str], known: ClassMap, *, what: str) -> None:
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    nearest = nearest_match(unknown[0], known)
    hint = f", did you mean {nearest!r}?" if nearest else ""
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    raise DistillError(
        f"{what} has classes that the training images do not have: {unknown[0]!r}{more}{hint}; "
        "say with --class-map FILE which training class they stand for, others are left out then"
    )


def _read_json(file: Path) -> ClassMap:
    content = parse_json(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no object at its top")
    class_map = {}
    for name, given in content.items():
        found = [given] if isinstance(given, str) else given
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{name!r} is mapped to {given!r}")
        class_map[name] = found
    return class_map


def _read_csv(file: Path) -> ClassMap:
    class_map: dict[str, list[str]] = {}
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.reader(opened))
    if not rows or [cell.strip() for cell in rows[0]] != _HEADER:
        raise ValueError(f"its first line is not {','.join(_HEADER)}")
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(_HEADER):
            raise ValueError(f"line {number} has {len(row)} columns")
        if row:
            class_map.setdefault(row[0].strip(), []).append(row[1].strip())
    return class_map


_COLUMNS = ("anchor", "frame", "label")
_OFFSET = "offset"
_SEPARATOR = ";"


@dataclass(frozen=True)
class FrameGroups:
    """Rows of a file, in its order: R rows, A anchors, I images.

    Attributes:
        name: Of the set.
        images: I frames, each once, without labels.
        frame: (R,) position of the row's frame in `images`.
        anchor: (R,) number of the row's anchor, from 0 to A - 1.
        offset: (R,) frames from the anchor.
        accepted: bool (R, C), the training classes that are right.
    """

    name: str
    images: FolderImages
    frame: np.ndarray
    anchor: np.ndarray
    offset: np.ndarray
    accepted: np.ndarray


def read_frame_groups(
    file: Path, classes: Sequence[str], class_map: ClassMap | None
) -> FrameGroups:
    """Read groups of frames; frames of no training class are left out with a class map.

    Args:
        file: See above.
        classes: Training classes by label.
        class_map: What labels stand for; None: they are training classes.

    Raises:
        DistillError: No such file, another content, labels that are not understood, or an anchor
            that is not once among its frames.
    """
    rows = _read(file)
    anchors = {name: number for number, name in enumerate(dict.fromkeys(r["anchor"] for r in rows))}
    frames = {name: place for place, name in enumerate(dict.fromkeys(r["frame"] for r in rows))}
    anchor = np.array([anchors[row["anchor"]] for row in rows])
    offset = _offsets(file, rows)
    _require_one_anchor_each(file, list(anchors), anchor[offset == 0])
    return FrameGroups(
        name=file.stem,
        images=FolderImages(file.parent, list(frames), name=file.stem),
        frame=np.array([frames[row["frame"]] for row in rows]),
        anchor=anchor,
        offset=offset,
        accepted=_accepted(file, rows, classes, class_map),
    )


def _read(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, restval="")
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            rows = list(reader)
    except OSError as error:
        raise DistillError(f"cannot read the frames {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DistillError(
            f"{file} is not a CSV file ({error}); name the file of frames"
        ) from error
    if missing:
        raise DistillError(
            f"{file} has no column {missing[0]!r}; its first line must be anchor,frame,label or "
            "anchor,frame,label,offset"
        )
    for number, row in enumerate(rows, start=2):
        if not all(row[name] for name in _COLUMNS):
            raise DistillError(f"line {number} of {file} lacks its anchor, frame or label; add it")
    if not rows:
        raise DistillError(f"{file} lists no frames; add a line for each frame of each anchor")
    return rows


def _offsets(file: Path, rows: Sequence[dict[str, str]]) -> np.ndarray:
    if _OFFSET in rows[0]:
        try:
            return np.array([int(row[_OFFSET]) for row in rows])
        except ValueError as error:
            raise DistillError(
                f"an offset in {file} is no whole number ({error}); it counts frames from the "
                "anchor"
            ) from error
    seen: Counter[str] = Counter()
    place, place_of_anchor = [], {}
    for row in rows:
        place.append(seen[row["anchor"]])
        if row["frame"] == row["anchor"]:
            place_of_anchor[row["anchor"]] = place[-1]
        seen[row["anchor"]] += 1
    # An anchor that is not among its frames gets no 0, which is refused later.
    return np.array(
        [p - place_of_anchor.get(r["anchor"], -1) for p, r in zip(place, rows, strict=True)]
    )


def _require_one_anchor_each(file: Path, names: Sequence[str], anchors: np.ndarray) -> None:
    counts = np.bincount(anchors, minlength=len(names))
    if (counts != 1).any():
        number = int(np.flatnonzero(counts != 1)[0])
        raise DistillError(
            f"the anchor {names[number]} in {file} is {counts[number]} times among its frames at "
            "offset 0, it must be there once; add or remove its line"
        )


def _accepted(
    file: Path, rows: Sequence[dict[str, str]], classes: Sequence[str], class_map: ClassMap | None
) -> np.ndarray:
    labels = [[one.strip() for one in row["label"].split(_SEPARATOR)] for row in rows]
    names = sorted({one for several in labels for one in several})
    matched = match_classes(names, classes, class_map, what=str(file))
    place = {name: number for number, name in enumerate(names)}
    return np.stack([matched[[place[one] for one in several]].any(axis=0) for several in labels])


@dataclass(frozen=True)
class ShiftedImages:
    """Images, and which training classes are right for each.

    Attributes:
        name: Of the set.
        images: All of them; labels are rows of `accepted`.
        index: Those that count.
        accepted: bool (F, C), the training classes that are right for a row.
    """

    name: str
    images: Images
    index: np.ndarray
    accepted: np.ndarray

    @property
    def num_left_out(self) -> int:
        """How many class folders stand for no training class."""
        return int((~self.accepted.any(axis=1)).sum())

    @property
    def present(self) -> np.ndarray:
        """The training classes that are right for some image."""
        return np.flatnonzero(self.accepted.any(axis=0))


def open_shifted(folder: Path, classes: Sequence[str], class_map: ClassMap | None) -> ShiftedImages:
    """Open a folder of class folders.

    Args:
        folder: Holds the class folders.
        classes: Training classes by label.
        class_map: What the folders' names stand for; None: they are training classes.

    Raises:
        DistillError: No such folder, no images, or names that are not understood.
    """
    if not folder.is_dir():
        raise DistillError(
            f"no such folder: {folder}; --shifted takes folders that hold a folder per class"
        )
    folder = Path(os.path.abspath(folder))
    names = class_folders(folder)
    if not names:
        raise DistillError(f"{folder} holds no class folders; give the folder that holds them")
    accepted = match_classes(names, classes, class_map, what=str(folder))
    images = read_class_folders(folder, names, name=folder.name)
    assert images.labels is not None
    index = np.flatnonzero(np.any(accepted[images.labels], axis=1))
    return ShiftedImages(folder.name, images, index, accepted)
