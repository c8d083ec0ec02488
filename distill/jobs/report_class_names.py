"""Names for classes whose folders have none, such as WordNet's n01440764.

The form is that of ImageNet's own lists: on each line the folder, white space, and the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distill.data.sources import ImageData
from distill.errors import DistillError


def read_class_names(path: Path) -> dict[str, str]:
    """Read a list of class names; of several names with commas between them the first counts.

    Raises:
        DistillError: A file that cannot be read, or a line with one word only.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"--class-names {path} cannot be read: {error}") from error
    names = {}
    for number, line in enumerate(lines, start=1):
        folder, *name = line.split(maxsplit=1) or [""]
        if not folder:
            continue
        if not name:
            raise DistillError(
                f"--class-names {path}, line {number}: {line.strip()!r} has no name; write the "
                "class folder, a space and its name"
            )
        names[folder] = name[0].split(",")[0].strip()
    return names


def rename_classes(data: ImageData, names: Mapping[str, str]) -> None:
    """Call the classes of a dataset as `names` says; those that are not in it keep their name."""
    for images in (data.train, data.val):
        if images is not None and images.classes is not None:
            images.classes = tuple(names.get(name, name) for name in images.classes)
