"""Checkpoints: everything that a run needs to go on, in files that are whole or not there.

    step-000000010.safetensors                what all ranks share, and how many shards there are
    step-000000010.queue-0-of-4.safetensors   the anchors that the first of four ranks holds

A file holds tensors by name, and as its description, under one checksum (CRC-32C), a format number,
what the writer says of it and the structure of dicts and lists that puts the state together.
Nothing is run when it is read, and a flipped bit is found. Tuples come back as lists. Each file is
written beside its place, flushed to the disk and renamed. Every rank writes its own shard; when all
have, the first writes the main file, whose presence makes the checkpoint complete. The teacher is
in none of them.

The newest two are kept, the best (by held-out training images), and those of every N epochs, as
asked. Shards are mapped: a rank of a run that goes on with another number of ranks takes its own
anchors out of all of them, and each file is checked by one rank. Limit: all ranks write to and read
from one file system.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from distill import distributed
from distill.config import RunOptions
from distill.errors import DistillError
from distill.losses.base import ShardState
from distill.models.checkpoints.safetensors import SafetensorsFile, write_safetensors

logger = logging.getLogger(__name__)

FORMAT = 3
_PLAIN = (bool, int, float, str, type(None))
_TENSOR, _DICT, _LIST = "tensor", "dict", "list"


def write_state(path: Path, state: Any, description: dict[str, Any]) -> None:
    """Write a state; the file is whole or as before.

    Args:
        path: The file.
        state: Tensors, dicts, lists, tuples, numbers, text and None.
        description: What JSON can hold, said beside it.

    Raises:
        OSError: The disk refuses.
        TypeError: There is something else in the state.
    """
    structure, tensors = _taken_apart(state)
    write_safetensors(path, tensors, {"format": FORMAT, **description, "state": structure})


def read_state(path: Path, *, verify: bool = True) -> tuple[dict[str, Any], Any]:
    """Return the description and the state, whose tensors are mapped from the file.

    Args:
        path: The file.
        verify: Read everything once and check it.

    Raises:
        DistillError: It is missing, damaged or of another format.
    """
    description, file = _opened(path, verify=verify)
    try:
        return description, _put_together(description.pop("state"), file.read)
    except (KeyError, ValueError, TypeError) as error:
        raise DistillError(f"checkpoint file {path} is damaged ({error})") from error


def read_description(path: Path) -> dict[str, Any]:
    """Return the description alone; nothing is checked.

    Raises:
        DistillError: The file is missing, not whole or of another format.
    """
    return _opened(path, verify=False)[0]


def _opened(path: Path, *, verify: bool) -> tuple[dict[str, Any], SafetensorsFile]:
    if not path.exists():
        raise DistillError(f"checkpoint file {path} is missing")
    try:
        file = SafetensorsFile(path, verify=verify)
    except DistillError as error:
        raise DistillError(f"checkpoint file {path} is damaged") from error
    content = file.description if isinstance(file.description, dict) else {}
    found = content.get("format")
    if found != FORMAT:
        raise CheckpointFormatError(
            f"checkpoint file {path} has format {found}, and this version of distill reads format "
            f"{FORMAT}; go on with the release that wrote it, or start a new run with another "
            "--output"
        )
    return dict(content), file


def _taken_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the structure, which JSON can hold, and the tensors by the names it gives them.

    Raises:
        TypeError: Something else than tensors, dicts, lists, tuples, numbers, text and None.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            while name in tensors:  # keys may have dots
                name += "'"
            tensors[name] = value
            return {_TENSOR: name}
        if isinstance(value, dict):  # as pairs: JSON would make texts of numbers as keys
            pairs = [[key, visit(one, f"{name}.{key}")] for key, one in value.items()]
            return {_DICT: pairs}
        if isinstance(value, (list, tuple)):
            return {_LIST: [visit(one, f"{name}.{place}") for place, one in enumerate(value)]}
        if isinstance(value, _PLAIN):
            return value
        raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")

    return visit(state, "state"), tensors


def _put_together(structure: Any, read: Callable[[str], Tensor]) -> Any:
    """Return the state that was taken apart.

    Args:
        structure: As `_taken_apart` returned it.
        read: Returns a tensor by its name.

    Raises:
        ValueError: It is no such structure.
    """
    if not isinstance(structure, dict):
        return structure
    if len(structure) != 1 or not {_TENSOR, _DICT, _LIST}.issuperset(structure):
        raise ValueError(f"no state has an entry {list(structure)}")
    ((kind, content),) = structure.items()
    if kind == _TENSOR:
        return read(content)
    if kind == _LIST:
        return [_put_together(one, read) for one in content]
    return {key: _put_together(one, read) for key, one in content}


KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.safetensors")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps taken.
        epoch: The epoch that is running, from 0.
        batch: Batches of it that were consumed.
        seconds: Time spent training, over all sittings.
        log_bytes: Length of the log that tells of all this.
        skipped: Names of the images that could not be read so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself.

    Attributes:
        run: Options that decide what the run is.
        score: Accuracy on held-out training images at this step; None where it was not measured.
        keep_every: Checkpoints after every so many epochs stay; 0: none for that reason.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    keep_every: int = 0


class Checkpoint(NamedTuple):
    """What was saved.

    Attributes:
        path: The main file.
        progress: Where the run stood.
        run: As in `About`.
        state: What all ranks share.
        shards: Of every rank that saved one, in order; their tensors are mapped from the files.
    """

    path: Path
    progress: Progress
    run: Mapping[str, Any]
    state: dict[str, Any]
    shards: list[dict[str, Any]]


class CheckpointFormatError(DistillError):
    """A checkpoint is of another release."""


class CheckpointNotWrittenError(DistillError):
    """The disk refused a checkpoint; those that were there are intact."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    state: dict[str, Any],
    shard: ShardState | None = None,
    about: About | None = None,
) -> Path:
    """Write a checkpoint and remove those that need not be kept; every rank calls it.

    Args:
        folder: Folder of the checkpoints.
        progress: Where the run stands.
        state: Tensors and plain values, nested in dicts and lists, the same on every rank.
        shard: This rank's. One that is the whole is written by the first rank alone.
        about: What else is kept with it.

    Returns:
        The main file.

    Raises:
        CheckpointNotWrittenError: On every rank, when the disk refuses one of them.
    """
    about = about or About()
    path = folder / f"step-{progress.step:09d}.safetensors"
    num_shards = 0 if shard is None else shard.num_shards
    own = None
    if shard is not None and (num_shards > 1 or distributed.is_main()):
        own = _shard_path(path, shard.rank, num_shards)
    is_epochs_end = progress.epoch > 0 and progress.batch == 0
    keep = is_epochs_end and about.keep_every > 0 and progress.epoch % about.keep_every == 0
    description = {
        **{"progress": asdict(progress), "run": dict(about.run), "num_shards": num_shards},
        **{"score": about.score, "keep": keep},
    }
    try:
        _write_on_all_ranks(own, {} if shard is None else shard.state, {})
        _write_on_all_ranks(path if distributed.is_main() else None, state, description)
    except CheckpointNotWrittenError:
        if own is not None and not path.exists():  # make room
            own.unlink(missing_ok=True)
        raise
    if distributed.is_main():
        _clean(folder, {_shard_path(path, rank, num_shards) for rank in range(num_shards)})
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the main files of a folder's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def checkpoint_bytes(path: Path) -> int:
    """Return the size of a checkpoint, shards included, from its main file."""
    shards = path.parent.glob(f"{path.stem}.queue-*-of-*.safetensors")
    return sum(file.stat().st_size for file in (path, *shards))


def require_known_format(folder: Path) -> None:
    """Refuse a run whose newest checkpoint another release wrote; damage is for `load_newest`.

    Raises:
        CheckpointFormatError: Naming both formats.
    """
    for newest in checkpoints(folder)[-1:]:
        try:
            read_description(newest)
        except CheckpointFormatError:
            raise
        except DistillError:
            pass


def load_newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint of a folder; None when there is none. Every rank calls it.

    Raises:
        DistillError: On every rank, when a file of it is missing, damaged or of another format,
            naming the newest of those before it that is whole.
    """
    found = checkpoints(folder)
    if not found:
        return None
    newest = found.pop()
    try:
        return _read(newest)
    except DistillError as error:
        whole = next((path for path in reversed(found) if _is_whole(path)), None)
        remedy = "put a copy there or start a new run with another --output"
        if whole is not None:
            after = [path.stem for path in (*found, newest) if path.stem > whole.stem]
            files = " and ".join(f"{stem}.*" for stem in after)
            remedy = f"remove {files} to go on from {whole.name}, which is whole"
        raise DistillError(f"{error}; {remedy}") from error


def _read(path: Path) -> Checkpoint:
    """Read one checkpoint; each rank checks some of its files, and all raise what one finds."""
    checkpoint: Checkpoint | None = None
    problems = set()
    try:
        content, state = read_state(path, verify=distributed.is_main())
        num_shards = content["num_shards"]
        shards = [_read_shard(path, rank, num_shards) for rank in range(num_shards)]
        progress = Progress(**content["progress"])
        checkpoint = Checkpoint(path, progress, content["run"], state, shards)
    except DistillError as error:
        problems.add(str(error))
    problems = distributed.all_gather_set(problems)
    if problems or checkpoint is None:
        raise DistillError("; ".join(sorted(problems)))
    return checkpoint


def _read_shard(path: Path, rank: int, num_shards: int) -> dict[str, Any]:
    place = _shard_path(path, rank, num_shards)
    mine = rank % distributed.world_size() == distributed.rank()
    return read_state(place, verify=mine)[1]


def _is_whole(path: Path) -> bool:
    try:
        num_shards = read_state(path)[0]["num_shards"]
        for rank in range(num_shards):
            read_state(_shard_path(path, rank, num_shards))
    except DistillError:
        return False
    return True


def _shard_path(path: Path, rank: int, num_shards: int) -> Path:
    return path.with_name(f"{path.stem}.queue-{rank}-of-{num_shards}.safetensors")


def _write_on_all_ranks(
    path: Path | None, state: dict[str, Any], description: dict[str, Any]
) -> None:
    """Write this rank's file, if it has one; raise on all ranks what one of them could not."""
    problems = set()
    if path is not None:
        try:
            write_state(path, state, description)
        except OSError as error:
            problems.add(f"{path.parent}: {error.strerror or error}")
    problems = distributed.all_gather_set(problems)
    if problems:
        raise CheckpointNotWrittenError(f"no checkpoint was written to {'; '.join(problems)}")


def _clean(folder: Path, newest_shards: set[Path]) -> None:
    """Remove checkpoints that need not be kept, main file first, and shards that belong to none."""
    found = checkpoints(folder)
    kept = {*found[-KEPT:], *_worth_keeping(found)}
    for path in found:
        if path not in kept:
            path.unlink(missing_ok=True)
    kept_before = tuple(f"{path.stem}." for path in kept if path != found[-1])
    for shard in folder.glob("step-*.queue-*-of-*.safetensors*"):
        if shard not in newest_shards and not shard.name.startswith(kept_before):
            shard.unlink()


def _worth_keeping(found: Sequence[Path]) -> set[Path]:
    """Return the best checkpoint, the newest of equals, and those that are kept for their epoch."""
    kept, scores = set(), []
    for path in found:
        try:
            content = read_description(path)
        except DistillError:  # damaged or of another version: not this run's to judge
            continue
        if content["keep"]:
            kept.add(path)
        if content["score"] is not None:
            scores.append((content["score"], path))
    return kept | ({max(scores)[1]} if scores else set())


class CheckpointWriter:
    """Writes a run's checkpoints, says how large they are and what happens when they cannot be.

    Args:
        folder: Of the checkpoints.
        identity: Options that decide what the run is.
        options: How often and what to do when the disk refuses.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], options: RunOptions) -> None:
        self._folder, self._identity, self._options = folder, identity, options
        self._has_told_size = False

    def save(
        self,
        progress: Progress,
        state: dict[str, Any],
        shard: ShardState | None,
        score: float | None,
    ) -> None:
        """Write a checkpoint; every rank calls it.

        Args:
            progress: Where the run stands.
            state: See `save_checkpoint`.
            shard: See `save_checkpoint`.
            score: Accuracy on held-out training images, where it was just measured.

        Raises:
            CheckpointNotWrittenError: The disk refuses it, and the run is to stop then.
        """
        about = About(self._identity, score, self._options.keep_every)
        try:
            path = save_checkpoint(self._folder, progress, state, shard, about)
        except CheckpointNotWrittenError as error:
            self._complain(progress, error)
            return
        if not self._has_told_size:
            size = checkpoint_bytes(path) / 2**20
            logger.info(f"a checkpoint takes {size:.1f} MiB in {path.parent}")
            self._has_told_size = True

    def _complain(self, progress: Progress, error: CheckpointNotWrittenError) -> None:
        before = checkpoints(self._folder)
        last = "there is none before it"
        if before:
            last = f"the last one, {before[-1].name}, is intact"
        message = f"after step {progress.step} {error}; {last}"
        if self._options.on_failed_checkpoint == "continue":
            logger.warning(f"{message}; training goes on. Make room before the next one is due")
            return
        raise CheckpointNotWrittenError(
            f"{message}. Make room, then go on with --output {self._folder.parent} --resume"
        ) from error
