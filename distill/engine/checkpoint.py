"""Checkpoints: everything that a run needs to go on, in files that are whole or not there.

A checkpoint is a PyTorch file of tensors and plain values, read with `weights_only=True`. It is
written beside its place, flushed to the disk and renamed; the newest two are kept.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.files import written_whole

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps taken.
        epoch: The epoch that is running, from 0.
        batch: Batches of it that were consumed.
        seconds: Time spent training, over all sittings.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0


def save_checkpoint(folder: Path, progress: Progress, state: dict[str, Any]) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Args:
        folder: Folder of the checkpoints.
        progress: Where the run stands.
        state: Tensors and plain values, nested in dicts and lists.

    Returns:
        The file written.
    """
    path = folder / f"step-{progress.step:09d}.pt"
    content = {"format": FORMAT, "progress": asdict(progress), "state": state}
    with written_whole(path) as file:
        torch.save(content, file)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def load_newest(folder: Path) -> tuple[Progress, dict[str, Any]] | None:
    """Read the newest checkpoint of a folder; None when there is none.

    Raises:
        DistillError: When it is damaged (naming the one before it) or of another format.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        content = torch.load(found[-1], map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        previous = f"; remove it to go on from {found[-2].name}" if len(found) > 1 else ""
        raise DistillError(f"checkpoint {found[-1]} is damaged{previous}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DistillError(f"checkpoint {found[-1]} was written by another version of distill")
    return Progress(**content["progress"]), content["state"]
