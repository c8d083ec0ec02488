"""Matches the names that another dataset uses with the classes of the training images.

Sources of the conventions: ImageNet-A and -R have a folder per WordNet id, as ImageNet itself;
ImageNet-v2 numbers its folders 0 to 999 in the order of the ids; ObjectNet names things in words,
some of which stand for several classes of ImageNet, so that a file must say which. Deliberate
limit: no such file is shipped.

Shapes: F names, C training classes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
