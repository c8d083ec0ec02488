"""Names for things a person can ask for: teachers, students, datasets.

A registry refuses duplicates and answers an unknown name with the nearest match. It holds
descriptions (data), not built networks, so that listing costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from distill.errors import UnknownNameError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Maps a name to its entry, in the order of registration.

    Args:
        kind: What the entries are, in the singular; used in error messages.
        remedy: Appended to the message for an unknown name: what else is accepted.
    """

    def __init__(self, kind: str, *, remedy: str = "") -> None:
        self.kind = kind
        self.remedy = remedy
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry`; a name can be taken once."""
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = entry

    def get(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: With the nearest registered name and every known one.
        """
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries, self.remedy)
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> list[tuple[str, Entry]]:
        """Return (name, entry) pairs in the order of registration."""
        return list(self._entries.items())
