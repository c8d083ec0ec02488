"""robustness.json: errors under corruption, written as they come, so that a run can be continued.

    {KEY: {"network": "student", "settings": {...}, "clean_error": 0.2,
           "errors": {"fog": {"1": 0.3, ...}, ...}}, ...}

KEY is a hash of the settings, which are all that the errors depend on: weights, input, head, seed,
images, labels, precision and the package that corrupts. Other settings are other entries, and the
last entry of a network is the newest one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.data.corruptions import CORRUPTIONS
from distill.errors import DistillError
from distill.files import atomic_write, file_lock
from distill.parsing import checked, parse_json

FILE = "robustness.json"


class Entry(TypedDict):
    """What the file says of one network under one setting; see `RobustnessRecord`."""

    network: str
    settings: dict[str, Any]
    clean_error: float | None
    errors: dict[str, dict[str, float]]


@dataclass
class RobustnessRecord:
    """What is known of one network under one setting.

    Attributes:
        folder: Where the file lies; None: nothing is kept.
        network: `student` or `teacher`.
        settings: All that the errors depend on, as JSON.
        clean_error: None until it is measured.
        errors: By corruption and severity, as far as they are measured.
    """

    folder: Path | None
    network: str
    settings: dict[str, Any]
    clean_error: float | None = None
    errors: dict[str, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entry = None if self.folder is None else read_robustness(self.folder).get(self.key)
        if entry is None:
            return
        self.clean_error = entry["clean_error"]
        self.errors = {
            name: {int(severity): error for severity, error in by.items()}
            for name, by in entry["errors"].items()
        }

    @property
    def key(self) -> str:
        """Hash of the settings and of the network's role."""
        content = json.dumps([self.network, self.settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def has(self, corruption: str, severity: int) -> bool:
        """Say whether an error is known."""
        return severity in self.errors.get(corruption, {})

    def set_clean(self, error: float) -> None:
        """Keep the error on clean images."""
        self.clean_error = error
        self._write()

    def set(self, corruption: str, severity: int, error: float) -> None:
        """Keep an error, in the standard order whatever the order of measuring."""
        self.errors.setdefault(corruption, {})[severity] = error
        self.errors = {
            name: dict(sorted(self.errors[name].items()))
            for name in CORRUPTIONS
            if name in self.errors
        }
        self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / FILE):
            everything = read_robustness(self.folder)
            everything.pop(self.key, None)  # the newest one comes last
            everything[self.key] = {
                "network": self.network,
                "settings": self.settings,
                "clean_error": self.clean_error,
                "errors": {
                    name: {str(severity): error for severity, error in by.items()}
                    for name, by in self.errors.items()
                },
            }
            atomic_write(self.folder / FILE, (json.dumps(everything, indent=2) + "\n").encode())


def read_robustness(folder: Path) -> dict[str, Entry]:
    """Read robustness.json of a folder; empty when there is none yet.

    Raises:
        DistillError: When the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        content = checked(parse_json(file.read_text(encoding="utf-8")), dict[str, Entry])
        for entry in content.values():
            for severity in (one for by in entry["errors"].values() for one in by):
                if not severity.isdecimal():
                    raise ValueError(f"a severity is no whole number: {severity[:20]!r}")
    except ValueError as error:
        raise DistillError(
            f"{file} is damaged ({error}); move it away and measure again"
        ) from error
    return content
