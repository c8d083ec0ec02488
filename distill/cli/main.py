"""The `distill` command: picks the subcommand, turns errors into one sentence and an exit status.

Exit status: 0 done, 1 the run failed, 2 the request cannot be met, 130 stopped by Ctrl-C.
A comparison that is not complete ends with 3.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from distill import __version__
from distill.errors import DistillError, LoaderDiedError, NonFiniteLossError, UnknownNameError

COMMANDS = {
    "train": ("distill.cli.train", "train a student from a frozen teacher (the default command)"),
    "pretrain": ("distill.cli.pretrain", "train a teacher without labels (SimCLR, C-BYOL, ...)"),
    "cache": ("distill.cli.cache", "keep a teacher's embeddings on disk before training"),
    "nn": ("distill.cli.evaluate:nn", "measure a student's nearest-neighbor accuracy"),
    "clusters": (
        "distill.cli.evaluate:clusters",
        "measure how a student's clusters agree with classes",
    ),
    "linear": ("distill.cli.linear", "measure a linear classifier on a student's embeddings"),
    "voc": ("distill.cli.voc", "transfer a student to PASCAL VOC: classification, detection"),
    "robustness": ("distill.cli.robustness", "measure a student on corrupted and on other images"),
    "measure": ("distill.cli.measure", "measure how much trained networks compress"),
    "compare": ("distill.cli.compare", "compare methods on a grid, with equal budgets"),
    "report": ("distill.cli.report", "make a page about a run, or compare several"),
    "rerun": ("distill.cli.rerun", "train a finished run again and compare what came out"),
    "convert": ("distill.cli.convert", "convert published weights to one safetensors file"),
    "export": ("distill.cli.export", "export a trained network as ONNX, torch.export, safetensors"),
    "list": ("distill.cli.listing", "list teachers, students, methods, datasets, recipes"),
}

# Commands whose work several processes, started by torchrun, share.
_SHARED = {"train", "pretrain", "cache", "nn", "clusters", "linear", "rerun"}
# A full disk or quota, a read-only or a vanished mount, a broken device.
_DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "ENOTCONN")
    if hasattr(errno, name)
}
_PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

_USAGE = """usage: distill [COMMAND] [OPTIONS]

Distill a frozen self-supervised network into a small one that sees alike.

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
        width = max(len(name) for name in COMMANDS)
        lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
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
        if name not in _SHARED and os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            raise DistillError(
                f"`distill {name}` runs in one process; start it without torchrun. These share "
                f"their work: {', '.join(sorted(_SHARED))}"
            )
        module, _, evaluation = COMMANDS[name][0].partition(":")
        given = (evaluation, rest) if evaluation else (rest,)
        return importlib.import_module(module).run(*given)
    except DistillError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # the reader went away, as in `distill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LoaderDiedError, NonFiniteLossError) as error:
        return _complain(error, 1)
    except OSError as error:
        sentence = _about_files(error)
        if sentence is None:
            raise
        return _complain(sentence, 2)
    except RuntimeError as error:
        sentence = _explanation(error)
        if sentence is None:
            raise
        return _complain(sentence, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _explanation(error: RuntimeError) -> str | None:
    """Return what a process of this job died of, for people; None for errors of the program."""
    # Not before they are needed: they import PyTorch.
    from distill.data.loader import LOADER_REMEDY, loader_death
    from distill.distributed import is_lost_peer

    died = loader_death(error)
    if died is not None:
        return f"{died}; {LOADER_REMEDY}"
    if "WORLD_SIZE" in os.environ and is_lost_peer(error):
        return (
            f"process {os.environ.get('RANK', '?')} ends, because another process of this job has "
            "ended; what that one said stands elsewhere. Start all of them again, with --resume to "
            "go on from the last checkpoint"
        )
    return None


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


def _complain(message: object, status: int) -> int:
    print(f"distill: error: {message}", file=sys.stderr)
    return status
