"""Finds the TensorFlow checkpoint that a path names: a prefix, one of its files, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

from distill.errors import DistillError

_PART = re.compile(r"\.(index|data-\d{5}-of-\d{5}|meta)$")
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"([^"]*)"', re.MULTILINE)
_EXPORTED = "variables/variables"  # of a SavedModel: the same weights under other names


def bundle_prefix(path: Path) -> Path | None:
    """Return the prefix of the checkpoint that `path` names; None when it names none.

    Args:
        path: `model.ckpt-37535`, a file of it, or a folder with one checkpoint at any depth; with
            several, a file `checkpoint` beside them says which one it is.

    Raises:
        DistillError: A folder with several checkpoints and no word on which one it is.
    """
    if path.is_dir():
        return _in_folder(path)
    prefix = path.with_name(_PART.sub("", path.name))
    return prefix if prefix.with_name(prefix.name + ".index").is_file() else None


def is_bundle_file(name: str) -> bool:
    """Tell whether a file in an archive belongs to a checkpoint, exported copies left out."""
    if _EXPORTED in name:
        return False
    return Path(name).name == "checkpoint" or bool(re.search(r"\.(index|data-[\d]{5}-of)", name))


def _in_folder(folder: Path) -> Path | None:
    found = sorted(
        file.with_name(file.name.removesuffix(".index"))
        for file in folder.rglob("*.index")
        if _EXPORTED not in file.as_posix()
    )
    if len(found) <= 1:
        return found[0] if found else None
    for parent in sorted({prefix.parent for prefix in found}):
        named = _newest(parent / "checkpoint")
        if named is not None and parent / named in found:
            return parent / named
    names = ", ".join(str(prefix.relative_to(folder)) for prefix in found)
    raise DistillError(f"{folder} holds several checkpoints ({names}); name one of them")


def _newest(file: Path) -> str | None:
    """Return the name of the checkpoint that TensorFlow's own `checkpoint` file names."""
    try:
        match = _NEWEST.search(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return Path(match[1]).name if match else None
