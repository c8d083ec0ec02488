"""The `distill` command: picks the subcommand, turns errors into one sentence and an exit status.

Exit status: 0 done, 1 the run failed, 2 the request cannot be met, 130 stopped by Ctrl-C.
A comparison that is not complete ends with 3.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from distill import __version__
from distill.cli import commands, compare, listing  # noqa: F401  (they fill COMMANDS)
from distill.cli.command import COMMANDS, require_one_process
from distill.errors import DistillError, LoaderDiedError, NonFiniteLossError, UnknownNameError

# A full disk or quota, a read-only or a vanished mount, a broken device.
_DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "ENOTCONN")
    if hasattr(errno, name)
}
_PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

_USAGE = """usage: distill [COMMAND] [OPTIONS]

Distill a frozen self-supervised network into a small one with the teacher's neighborhoods.

commands:
{commands}

examples:
  distill --teacher pixels --student resnet18
  distill --teacher timm:resnet50 --student resnet18 --data photos --output runs/first
  distill nn runs/first --data photos
  distill train --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: list[str]) -> int:
    """Run the command line; return the exit status.

    Args:
        argv: Arguments after the program's name. A first argument that starts with `-` belongs to
            `train`, except for --help and --version.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
        print(_USAGE.format(commands="\n".join(lines)), end="")
        return 0
    if argv[0] == "--version":
        print(f"distill {__version__}")
        return 0
    from distill.terminal import log_to_console

    log_to_console()
    name, rest = ("train", argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    try:
        if name not in COMMANDS:
            raise UnknownNameError("command", name, COMMANDS, "`distill --help` explains them")
        command = COMMANDS[name]
        if not command.is_shared:
            require_one_process(name)
        return command.run(rest)
    except DistillError as error:
        return _fail(error, 2)
    except BrokenPipeError:  # the reader went away, as in `distill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LoaderDiedError, NonFiniteLossError) as error:
        return _fail(error, 1)
    except OSError as error:
        sentence = _about_files(error)
        if sentence is None:
            raise
        return _fail(sentence, 2)
    except RuntimeError as error:
        from distill.distributed import is_lost_peer

        if "WORLD_SIZE" not in os.environ or not is_lost_peer(error):
            raise
        sentence = (
            f"process {os.environ.get('RANK', '?')} ends, because another process of this job has "
            "ended; what that one said stands elsewhere. Start all of them again, with --resume to "
            "go on from the last checkpoint"
        )
        return _fail(sentence, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _about_files(error: OSError) -> str | None:
    """Return what a person can do about a place that cannot be used; None for anything else."""
    from distill.parsing import shown

    if error.errno in _PATH_ERRORS:
        return (
            f"{shown(error.filename or 'a path')} cannot be used: {error.strerror}; name another "
            "place, or change who may use this one"
        )
    if error.errno in _DISK_ERRORS:
        return (
            f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room, or "
            "choose another place. What was written before is whole, and a run goes on with "
            "--resume"
        )
    return None


def _fail(message: object, status: int) -> int:
    print(f"distill: error: {message}", file=sys.stderr)
    return status
