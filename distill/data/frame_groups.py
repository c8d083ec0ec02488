"""Groups of neighbouring video frames, as ImageNet-Vid-Robust and YTBB-Robust have them.

Source: Shankar et al., "Do Image Classifiers Generalize Across Time?" (arXiv 1906.02168). A CSV
file lists, for each anchor frame, the frames around it:

    anchor,frame,label[,offset]
    a/12.jpg,a/11.jpg,n02084071
    a/12.jpg,a/12.jpg,n02084071
    a/12.jpg,a/13.jpg,n02084071;n02088364

Paths are relative to the file's folder. Of several labels, with ; between them, each is right.
`offset` is the number of frames from the anchor; without that column the frames of an anchor stand
in the order of time. The anchor itself is among its frames, at offset 0.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.class_map import ClassMap, match_classes
from distill.data.images import FolderImages
from distill.errors import DistillError

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
