"""Checkpoints: everything that a run needs to go on, in files that are whole or not there.

    step-000000010.pt                what all ranks share, and how many shards there are
    step-000000010.queue-0-of-4.pt   the anchors that the first of four ranks holds

PyTorch files of tensors and plain values, read with `weights_only=True`, each written beside its
place, flushed to the disk and renamed. Every rank writes its own shard; when all have, the first
writes the main file, whose presence makes the checkpoint complete. The newest two are kept.

Shards are mapped, not read: a rank of a run that goes on with another number of ranks takes its own
anchors out of all of them. Limits: all ranks write to and read from one file system; a shard is
found damaged by its structure, not by a checksum of its content.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distill import distributed
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


class Shard(NamedTuple):
    """A rank's part of what is spread over `num_shards` ranks; alone it is the whole.

    Attributes:
        rank: Which part, from 0.
        num_shards: How many there are.
        state: Tensors and plain values, nested in dicts and lists.
    """

    rank: int
    num_shards: int
    state: dict[str, Any]


class Checkpoint(NamedTuple):
    """What was saved.

    Attributes:
        progress: Where the run stood.
        state: What all ranks share.
        shards: Of every rank that saved one, in order; their tensors are mapped from the files.
    """

    progress: Progress
    state: dict[str, Any]
    shards: list[dict[str, Any]]


def save_checkpoint(
    folder: Path, progress: Progress, state: dict[str, Any], shard: Shard | None = None
) -> Path:
    """Write a checkpoint and remove all but the newest two; every rank calls it.

    Args:
        folder: Folder of the checkpoints.
        progress: Where the run stands.
        state: Tensors and plain values, nested in dicts and lists, the same on every rank.
        shard: This rank's. One that is the whole is written by the first rank alone.

    Returns:
        The main file.
    """
    path = folder / f"step-{progress.step:09d}.pt"
    if shard is not None and (shard.num_shards > 1 or distributed.is_main()):
        with written_whole(_shard_path(path, shard.rank, shard.num_shards)) as file:
            torch.save(shard.state, file)
    distributed.barrier()
    if not distributed.is_main():
        return path
    num_shards = 0 if shard is None else shard.num_shards
    content = {"format": FORMAT, "progress": asdict(progress), "state": state}
    with written_whole(path) as file:
        torch.save({**content, "num_shards": num_shards}, file)
    _clean(folder, {_shard_path(path, rank, num_shards) for rank in range(num_shards)})
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the main files of a folder's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def load_newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint of a folder; None when there is none.

    Raises:
        DistillError: When a file of it is missing or damaged (naming the checkpoint before it) or
            of another format.
    """
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    remedy = f"; remove {newest.name} to go on from {found[-2].name}" if len(found) > 1 else ""
    content = _read(newest, remedy)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DistillError(f"checkpoint {newest} was written by another version of distill")
    num_shards = content.get("num_shards", 0)
    paths = [_shard_path(newest, rank, num_shards) for rank in range(num_shards)]
    shards = [_read(path, remedy, mmap=True) for path in paths]
    return Checkpoint(Progress(**content["progress"]), content["state"], shards)


def _shard_path(path: Path, rank: int, num_shards: int) -> Path:
    return path.with_name(f"{path.stem}.queue-{rank}-of-{num_shards}.pt")


def _read(path: Path, remedy: str, *, mmap: bool = False) -> Any:
    if not path.exists():
        raise DistillError(f"checkpoint file {path} is missing{remedy or _NO_REMEDY}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DistillError(f"checkpoint file {path} is damaged{remedy or _NO_REMEDY}") from error


_NO_REMEDY = "; put a copy there or start a new run with another --output"


def _clean(folder: Path, newest_shards: set[Path]) -> None:
    """Remove old checkpoints, main file first, and shards that belong to none."""
    found = checkpoints(folder)
    for path in found[:-KEPT]:
        path.unlink()
    kept_before = tuple(f"{path.stem}." for path in found[-KEPT:-1])
    for shard in folder.glob("step-*.queue-*-of-*.pt*"):
        if shard not in newest_shards and not shard.name.startswith(kept_before):
            shard.unlink()
