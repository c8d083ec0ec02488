"""The run directory: everything that a run writes, and its lock.

    config.yaml           the resolved configuration, with versions
    metrics.json          one object: what was measured, fractions of 1
    log.jsonl             a line per logging step; older ones in log-0001.jsonl, ...
    tensorboard/          the same for TensorBoard
    checkpoints/          the newest states of the run
    student.safetensors   the trained student, with its description
    backbone.safetensors  instead, after pre-training: the backbone, with its description
    heads.safetensors     and the heads that it was trained through

Files are written atomically. With several processes only the first writes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import yaml

from distill import distributed
from distill.config import flattened, read_yaml
from distill.errors import DistillError
from distill.files import atomic_write, file_lock
from distill.parsing import checked, parse_json

STUDENT, BACKBONE, HEADS = "student.safetensors", "backbone.safetensors", "heads.safetensors"
_BESIDE = _VERSIONS, _FINGERPRINTS = ("versions", "fingerprints")
_COMMAND = "command"


class RunDirectory:
    """An open run directory, locked against other processes until `close` or the process ends.

    Args:
        path: The directory. It must not exist or be empty, unless `resume`.
        resume: Continue the run that lies there.

    Raises:
        DistillError: The directory holds something else, has no run to continue, cannot be made or
            is in use by another process.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._lock: filelock.BaseFileLock | None = None
        if not distributed.is_main():
            return
        require_usable(path, resume=resume)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistillError(
                f"{path} cannot be made: {error.strerror}; choose another --output"
            ) from error
        self._lock = filelock.FileLock(path / ".lock", blocking=False)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise DistillError(
                f"{path} is in use by another process; wait for its end or choose another --output"
            ) from error

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """File of the trained student."""
        return self.path / STUDENT

    @property
    def backbone(self) -> Path:
        """File of the pre-trained backbone."""
        return self.path / BACKBONE

    @property
    def heads(self) -> Path:
        """File of the heads that a backbone was pre-trained through."""
        return self.path / HEADS

    def write_config(
        self, config: Any, *, command: str, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Write the resolved configuration with what else a run depends on.

        Args:
            config: A dataclass of groups of options.
            command: The subcommand that it belongs to.
            fingerprints: Of the images, by split.
        """
        if not distributed.is_main():
            return
        beside = {_VERSIONS: versions(), _FINGERPRINTS: dict(fingerprints or {})}
        content = {_COMMAND: command, **flattened(config), **beside}
        text = yaml.safe_dump(content, sort_keys=False)
        atomic_write(self.path / "config.yaml", text.encode())

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Add numbers to metrics.json; those of the same name are replaced."""
        if distributed.is_main():
            add_metrics(self.path, metrics)

    def close(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.release()


def holds_run(path: Path) -> bool:
    """Return whether a run was begun in a directory."""
    return (path / "config.yaml").exists()


def require_usable(path: Path, *, resume: bool) -> None:
    """Refuse a path that a run cannot (or must not) be written to; writes nothing.

    Raises:
        DistillError: See `RunDirectory`.
    """
    if path.exists() and not path.is_dir():
        raise DistillError(f"--output {path} is a file; name a directory")
    has_run = holds_run(path)
    if resume and not has_run:
        raise DistillError(
            f"{path} holds no run to resume; say what to train to start one there, or name the "
            "directory of a run"
        )
    if not resume and has_run:
        raise DistillError(
            f"{path} holds a run already; continue it with --resume or choose another --output"
        )
    leftovers = {"checkpoints", ".lock"}  # of a run that ended before it wrote its configuration
    if (
        not resume
        and path.is_dir()
        and any(entry.name not in leftovers for entry in path.iterdir())
    ):
        raise DistillError(f"{path} is not empty and holds no run; choose another --output")


def read_config(path: Path, *, command: str | None = None) -> dict[str, Any]:
    """Read the options of a run, without what stands beside them (`read_run_metadata`).

    Args:
        path: The run directory.
        command: The subcommand that the run must be of; None: any.

    Raises:
        DistillError: When there is no readable config.yaml, or the run is of another command.
    """
    options = read_yaml(path / "config.yaml", kind="the run's configuration")
    for name in _BESIDE:
        options.pop(name, None)
    found = options.pop(_COMMAND, "train")
    if command not in (None, found):
        raise DistillError(
            f"{path} is a run of `distill {found}`, not of `distill {command}`; use that command "
            "or another directory"
        )
    return options


class RunMetadata(NamedTuple):
    """What a run depends on beside its options.

    Attributes:
        command: Of which it is a run.
        versions: Of packages and Python, by name.
        fingerprints: Of the images, by split; empty for an older run.
    """

    command: str
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]


def read_run_metadata(path: Path) -> RunMetadata:
    """Read what stands beside the options of a run.

    Raises:
        DistillError: There is no readable config.yaml.
    """
    content = read_yaml(path / "config.yaml", kind="the run's configuration")
    try:
        return RunMetadata(
            checked(content.get(_COMMAND, "train"), str),
            *(checked(content.get(name) or {}, dict[str, Any]) for name in _BESIDE),
        )
    except ValueError as error:
        raise DistillError(f"{path / 'config.yaml'} is damaged ({error})") from error


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json of a run directory; empty when there is none yet.

    Raises:
        DistillError: When the file is damaged.
    """
    file = path / "metrics.json"
    if not file.exists():
        return {}
    try:
        return checked(parse_json(file.read_text(encoding="utf-8")), dict[str, Any])
    except ValueError as error:
        raise DistillError(
            f"{file} is damaged ({error}); move it away and measure again"
        ) from error


def add_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Add numbers to metrics.json under `path`; those of the same name go, for good if None."""
    with file_lock(path / "metrics.json"):  # two measurements may end together
        merged = {**read_metrics(path), **metrics}
        merged = {name: value for name, value in merged.items() if value is not None}
        atomic_write(path / "metrics.json", (json.dumps(merged, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    packages = {"distill": "distill-vision", "torch": "torch", "torchvision": "torchvision"}
    found = {name: version(package) for name, package in packages.items()}
    return {**found, "python": platform.python_version()}
