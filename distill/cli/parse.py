"""What all subcommands share in reading their flags (tyro does the work)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

Command = TypeVar("Command")


def parse(
    command: type[Command],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    default: Command | None = None,
) -> Command:
    """Read flags into a frozen dataclass; its groups do not prefix them.

    Exits with status 2 and a message that names the flag when one is unknown or of the wrong type.

    Args:
        command: The dataclass.
        argv: Arguments after the subcommand.
        prog: Shown in the usage line.
        description: Shown at the top of the help, worked examples included.
        default: Values that flags override; None takes the dataclass's own.
    """
    config = (tyro.conf.OmitArgPrefixes,)
    if default is None:
        return tyro.cli(command, args=argv, prog=prog, description=description, config=config)
    return tyro.cli(
        command, args=argv, prog=prog, description=description, default=default, config=config
    )


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag that must be known before the others; None without it."""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
    return None


def given_options(argv: Sequence[str]) -> list[str]:
    """Return the names of all flags, as the options they set: `batch_size` for --batch-size 8."""
    flags = [argument[2:].partition("=")[0] for argument in argv if argument.startswith("--")]
    return [flag.replace("-", "_") for flag in flags]
