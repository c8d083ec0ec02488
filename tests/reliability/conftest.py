"""Commands in processes of their own that can be killed at any moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120.0  # seconds


class Commands:
    """Starts `distill` commands by forking a process that has imported everything."""

    def __init__(self, folder: Path, zygote: Any) -> None:
        self.folder, self.zygote = folder, zygote
        self._number = 0

    def start(self, argv: list[str]) -> Command:
        """Start a command."""
        self._number += 1
        output = self.folder / f"command-{self._number}.txt"
        return Command(self, self.zygote.ask(argv=argv, output=str(output)), output)

    def wait(self, process: int) -> int:
        """Return the exit status of a command, negative when a signal ended it."""
        return self.zygote.ask(wait=process)


class Command:
    """A command that runs."""

    def __init__(self, commands: Commands, process: int, output: Path) -> None:
        self._commands, self.process, self.output = commands, process, output

    @property
    def printed(self) -> str:
        """What it has said."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for_words(self, words: str) -> bool:
        """Wait until it has said something; return False when it ended before."""
        end = time.monotonic() + PATIENCE
        while words not in self.printed:
            if self.has_ended():
                return False
            assert time.monotonic() < end, self.printed
            time.sleep(0.002)
        return True

    def has_ended(self) -> bool:
        """Say whether it is a zombie by now."""
        return Path(f"/proc/{self.process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and to its loaders, as a terminal and a cluster's queue do."""
        os.killpg(self.process, number)

    def wait(self) -> int:
        """Return its exit status."""
        return self._commands.wait(self.process)


@pytest.fixture
def commands(zygote: Any, tmp_path: Path) -> Commands:
    """Start commands."""
    folder = tmp_path / "commands"
    folder.mkdir()
    return Commands(folder, zygote)
