"""The run directory: everything that a run writes, and its lock.

    config.yaml           the resolved configuration, with versions
    metrics.json          one object of all metrics; accuracies are fractions of 1
    log.jsonl             a line per logging step; older ones in log-0001.jsonl, ...
    tensorboard/          the same for TensorBoard
    checkpoints/          the newest checkpoints
    student.safetensors   the trained student, with its description
    backbone.safetensors  the backbone, after pre-training, with its description
    heads.safetensors     the heads, after pre-training

Files are written atomically. With several processes only rank 0 writes.
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
from distill.files import atomic_write, file_lock, lock_folder
from distill.parsing import checked, parse_json

STUDENT, BACKBONE, HEADS = "student.safetensors", "backbone.safetensors", "heads.safetensors"
_BESIDE = _VERSIONS, _FINGERPRINTS = ("versions", "fingerprints")
_COMMAND = "command"


class RunDirectory:
    """A run directory, locked against other processes until `close` or the process ends.

    Args:
        path: The directory; missing or empty, unless `resume`.
        resume: Continue the run in it.

    Raises:
        DistillError: The directory has other content or no run to continue, cannot be made, or is
            in use by another process.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self.student, self.backbone, self.heads = (
            path / name for name in (STUDENT, BACKBONE, HEADS)
        )
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
        self._lock = lock_folder(path, instead=" or choose another --output")

    def write_config(
        self, config: Any, *, command: str, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Write the resolved configuration, the versions and the fingerprints of the images.

        Args:
            config: A dataclass of groups of options.
            command: The subcommand.
            fingerprints: Of the images, by split.
        """
        if not distributed.is_main():
            return
        beside = {_VERSIONS: versions(), _FINGERPRINTS: dict(fingerprints or {})}
        content = {_COMMAND: command, **flattened(config), **beside}
        text = yaml.safe_dump(content, sort_keys=False)
        atomic_write(self.path / "config.yaml", text.encode())

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Add numbers to metrics.json on rank 0; see the function `add_metrics`."""
        if distributed.is_main():
            add_metrics(self.path, metrics)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()


def holds_run(path: Path) -> bool:
    """Return whether a directory has a run, finished or not."""
    return (path / "config.yaml").exists()


def require_usable(path: Path, *, resume: bool) -> None:
    """Raise `DistillError` if a run must not be written to `path`; see `RunDirectory`."""
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
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not resume and entries - leftovers:
        raise DistillError(f"{path} is not empty and holds no run; choose another --output")


def read_config(path: Path, *, command: str | None = None) -> dict[str, Any]:
    """Read the options of a run, without its metadata (`read_run_metadata`).

    Args:
        path: The run directory.
        command: The subcommand that must have made the run; None: any.

    Raises:
        DistillError: There is no readable config.yaml, or another subcommand made the run.
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
    """What config.yaml records about a run beside its options."""

    command: str
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]  # of the images, by split; empty for an older run


def read_run_metadata(path: Path) -> RunMetadata:
    """Read the metadata of a run; `DistillError` if there is no readable config.yaml."""
    content = read_yaml(path / "config.yaml", kind="the run's configuration")
    try:
        return RunMetadata(
            checked(content.get(_COMMAND, "train"), str),
            *(checked(content.get(name) or {}, dict[str, Any]) for name in _BESIDE),
        )
    except ValueError as error:
        raise DistillError(f"{path / 'config.yaml'} is damaged ({error})") from error


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json of a run directory, empty if missing; `DistillError` if damaged."""
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
    """Merge numbers into metrics.json under `path`; None removes a name."""
    with file_lock(path / "metrics.json"):  # two evaluations may finish at the same time
        merged = {**read_metrics(path), **metrics}
        merged = {name: value for name, value in merged.items() if value is not None}
        atomic_write(path / "metrics.json", (json.dumps(merged, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions of Python and the main packages."""
    packages = {"distill": "distill-vision", "torch": "torch", "torchvision": "torchvision"}
    found = {name: version(package) for name, package in packages.items()}
    return {**found, "python": platform.python_version()}
