"""Images of known classes from elsewhere: class folders, and groups of neighboring video frames.

Class folders are ImageNet-A, -R, -v2 or ObjectNet as they are unpacked. Their names are matched
with the training classes: ImageNet-A and -R have a folder per WordNet id, as ImageNet itself;
ImageNet-v2 numbers its folders 0 to 999 in the order of the ids; ObjectNet names things in words,
some of which stand for several classes of ImageNet, so that a file must tell which.

Groups of frames are those of ImageNet-Vid-Robust and YTBB-Robust (Shankar et al., "Do Image
Classifiers Generalize Across Time?", arXiv 1906.02168). A CSV file lists, for each anchor frame,
the frames around it:

    anchor,frame,label[,offset]
    a/12.jpg,a/11.jpg,n02084071
    a/12.jpg,a/12.jpg,n02084071
    a/12.jpg,a/13.jpg,n02084071;n02088364

Paths are relative to the file's folder. Of several labels, with ; between them, each is right.
`offset` is the number of frames from the anchor; without that column the frames of an anchor stand
in the order of time. The anchor itself is among its frames, at offset 0.

Limits: nothing is downloaded and no class map is shipped; ObjectNet's red border of one pixel is
not cut off (the evaluation crop leaves it out, unless its crop fraction is 1).

Shapes: F names, C training classes, R rows of a file, A anchors, I images.
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
from distill.parsing import checked, parse_json

ClassMap = Mapping[str, Sequence[str]]
"""The training classes that a name stands for, by name."""

# ImageNet's 1,000 classes in the order of their WordNet ids begin and end with these.
_NUM_IMAGENET_CLASSES, _FIRST, _LAST = 1000, "n01440764", "n15075141"


@dataclass(frozen=True)
class ShiftedImages:
    """Images, and which training classes are right for each.

    Attributes:
        name: Of the set.
        images: All of them; labels are rows of `accepted`.
        index: int64, those that stand for a training class.
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


@dataclass(frozen=True)
class FrameGroups:
    """Rows of a file, in its order.

    Attributes:
        name: Of the set.
        images: I frames, each once, without labels.
        frame: int64 (R,), position of the row's frame in `images`.
        anchor: int64 (R,), number of the row's anchor, from 0 to A - 1.
        offset: int64 (R,), frames from the anchor.
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
        file: CSV, see above.
        classes: Training classes by label.
        class_map: What labels stand for; None: they are training classes.

    Raises:
        DistillError: No such file, another content, labels that are not understood, or an anchor
            that is not once among its frames.
    """
    try:
        rows = _csv_rows(file, ("anchor", "frame", "label"))
        anchor_of, frame_of = _positions(rows, "anchor"), _positions(rows, "frame")
        offset = _offsets(rows)
    except OSError as error:
        raise DistillError(f"cannot read the frames {file}: {error.strerror}") from error
    except ValueError as error:
        raise DistillError(
            f"{file} is not a list of frames ({error}); its first line must be anchor,frame,label "
            "or anchor,frame,label,offset, and every other line has all of these"
        ) from error
    anchor = np.array([anchor_of[row["anchor"]] for row in rows])
    counts = np.bincount(anchor[offset == 0], minlength=len(anchor_of))
    for name, count in zip(anchor_of, counts, strict=True):
        if count != 1:
            raise DistillError(
                f"the anchor {name} in {file} is {count} times among its frames at offset 0, it "
                "must be there once; add or remove its line"
            )
    labels = [[one.strip() for one in row["label"].split(";")] for row in rows]
    names = sorted({one for several in labels for one in several})
    matched = dict(
        zip(names, match_classes(names, classes, class_map, what=str(file)), strict=True)
    )
    return FrameGroups(
        name=file.stem,
        images=FolderImages(file.parent, list(frame_of), name=file.stem),
        frame=np.array([frame_of[row["frame"]] for row in rows]),
        anchor=anchor,
        offset=offset,
        accepted=np.stack(
            [np.any([matched[one] for one in several], axis=0) for several in labels]
        ),
    )


def _positions(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, int]:
    """Number the different texts of a column in the order in which they come."""
    names = dict.fromkeys(row[column] for row in rows)
    return {name: position for position, name in enumerate(names)}


def _offsets(rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Return the frames between each row and its anchor, by column or by the order of rows."""
    if "offset" in rows[0]:
        return np.array([int(row["offset"]) for row in rows])
    seen: Counter[str] = Counter()
    place, place_of_anchor = [], {}
    for row in rows:
        anchor = row["anchor"]
        place.append(seen[anchor])
        if row["frame"] == anchor:
            place_of_anchor[anchor] = seen[anchor]
        seen[anchor] += 1
    # An anchor that is not among its frames gets no 0, which is refused later.
    own = [place_of_anchor.get(row["anchor"], -1) for row in rows]
    return np.array(place) - np.array(own)


def read_class_map(file: Path) -> ClassMap:
    """Read what names stand for.

    Args:
        file: JSON, an object of name to class or list of classes; or CSV with the columns name and
            class, a row for each pair.

    Raises:
        DistillError: No such file, or another content.
    """
    try:
        if file.suffix.lower() == ".json":
            content = parse_json(file.read_text(encoding="utf-8"))
            pairs = checked(content, dict[str, str | list[str]])
            return {name: [one] if isinstance(one, str) else one for name, one in pairs.items()}
        if file.suffix.lower() == ".csv":
            class_map: dict[str, list[str]] = {}
            for row in _csv_rows(file, ("name", "class")):
                class_map.setdefault(row["name"], []).append(row["class"])
            return class_map
    except OSError as error:
        raise DistillError(f"cannot read the class map {file}: {error.strerror}") from error
    except ValueError as error:
        raise DistillError(
            f"the class map {file} is not understood ({error}); it must be a JSON object of name "
            "to class or list of classes, or a CSV file with the columns name,class"
        ) from error
    raise DistillError(f"the class map {file} must be a .json or a .csv file")


def _csv_rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file with a header, at least one row, and a text in each of `columns`.

    Raises:
        ValueError: Another content.
    """
    rows = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, restval="", skipinitialspace=True)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}")
            for row in reader:
                lacking = [column for column in columns if not row[column].strip()]
                if lacking or None in row:
                    problem = f"lacks its {lacking[0]}" if lacking else "has too many columns"
                    raise ValueError(f"line {reader.line_num} {problem}")
                rows.append({column: text.strip() for column, text in row.items()})
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not rows:
        raise ValueError("it has no rows")
    return rows


def match_classes(
    names: Sequence[str], classes: Sequence[str], class_map: ClassMap | None, *, what: str
) -> np.ndarray:
    """Return which training classes every name stands for.

    Without a map a name is a training class; numbers from 0 on are ImageNet's classes in the order
    of their WordNet ids when the training images are of all of them.

    >>> match_classes(["dog", "cat"], ["ant", "cat", "dog"], None, what="the example").tolist()
    [[False, False, True], [False, True, False]]

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
        class_map = _without_map(names, classes)
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
    """Tell whether class names are ImageNet's WordNet ids, by their number and two of them."""
    in_order = sorted(classes)
    return len(in_order) == _NUM_IMAGENET_CLASSES and (in_order[0], in_order[-1]) == (_FIRST, _LAST)


def _without_map(names: Sequence[str], classes: Sequence[str]) -> ClassMap:
    """Return that names are training classes, or numbers of ImageNet's."""
    if is_imagenet(classes) and all(re.fullmatch(r"[0-9]{1,3}", name) for name in names):
        in_order = sorted(classes)
        return {name: [in_order[int(name)]] for name in names}
    return {name: [name] for name in classes}


def _refuse_unknown(names: Sequence[str], known: ClassMap, *, what: str) -> None:
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    nearest = nearest_match(unknown[0], known)
    hint = f", did you mean {nearest!r}?" if nearest else ""
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    raise DistillError(
        f"{what} has classes that the training images do not have: {unknown[0]!r}{more}{hint}; "
        "state with --class-map FILE which training class they stand for, others are left out then"
    )
