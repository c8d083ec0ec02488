"""Names for things a person can ask for: teachers, students, datasets.

A registry refuses duplicates and answers an unknown name with the nearest match. It holds
descriptions (data), not built networks, so that listing costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

from distill.errors import UnknownNameError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Maps a name to its entry, in the order of registration.

    Args:
        kind: What the entries are, in the singular; used in error messages.
        remedy: Appended to the message for an unknown name: what else is accepted.
        package: Its modules register entries when they are imported, which the first look-up does.
    """

    def __init__(self, kind: str, *, remedy: str = "", package: str | None = None) -> None:
        self.kind = kind
        self.remedy = remedy
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._unlisted: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry, *, listed: bool = True) -> None:
        """Register `entry`; a name can be taken once.

        Args:
            name: As people type it.
            entry: What it stands for.
            listed: False for another name of something, or a part of it: it works, and it is
                suggested when it is the nearest to what was typed, but no list shows it.
        """
        taken = {**self._entries, **self._unlisted}
        assert name not in taken, f"{self.kind} {name!r} is registered twice"
        (self._entries if listed else self._unlisted)[name] = entry

    def get(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: With the nearest registered name and every known one.
        """
        if name not in self:
            raise UnknownNameError(
                self.kind, name, self._entries, self.remedy, unlisted=self._unlisted
            )
        return self._entries[name] if name in self._entries else self._unlisted[name]

    def __contains__(self, name: str) -> bool:
        self._import_package()
        return name in self._entries or name in self._unlisted

    def __iter__(self) -> Iterator[str]:
        self._import_package()
        return iter(self._entries)

    def items(self) -> list[tuple[str, Entry]]:
        """Return the (name, entry) pairs that are listed, in the order of registration."""
        self._import_package()
        return list(self._entries.items())

    def _import_package(self) -> None:
        package, self._package = self._package, None
        if package is not None:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{module.name}")
