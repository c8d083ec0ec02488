"""Commands in processes of their own that can be killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "zygote.py"
PATIENCE = 120.0  # seconds


class Commands:
    """Starts `distill` commands by forking a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._zygote = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._number = 0

    def start(self, argv: list[str]) -> Command:
        """Start a command."""
        self._number += 1
        output = self.folder / f"command-{self._number}.txt"
        process = self._ask({"argv": argv, "output": str(output)})
        return Command(self, process, output)

    def wait(self, process: int) -> int:
        """Return the exit status of a command, negative when a signal ended it."""
        return self._ask({"wait": process})

    def _ask(self, request: dict) -> int:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def close(self) -> None:
        """End all of it."""
        self._zygote.kill()
        self._zygote.wait()


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
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Start commands."""
    folder = tmp_path / "commands"
    folder.mkdir()
    started = Commands(folder)
    yield started
    started.close()
