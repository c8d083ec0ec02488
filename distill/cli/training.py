"""What `distill train` and `distill pretrain` share: defaults, and what they say at the end."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.parse import flag_value, given_options
from distill.training.configuration import STANDS_WITH, base_config, run_to_continue

if TYPE_CHECKING:
    from distill.training.fitting import RunResult


def default_config(argv: Sequence[str], *, command: str) -> Any:
    """Return what flags override: the recipe that they name, or the run that they continue.

    Args:
        argv: Arguments after the subcommand.
        command: `train` or `pretrain`.

    Raises:
        DistillError: Unknown recipe, or no run to continue.
    """
    output = flag_value(argv, "--output")
    return base_config(
        command=command,
        recipe=flag_value(argv, "--recipe") or "default",
        resume_from=run_to_continue(Path(output) if output else None, given_options(argv)),
        asked={option: flag_value(argv, f"--{option}") for option in STANDS_WITH},
    )


def report(result: RunResult, *, command: str) -> int:
    """Print the numbers of a run or how to go on with it; return the exit status.

    Args:
        result: What the run left behind.
        command: What the person typed to start it, as in `distill pretrain`.
    """
    from distill import distributed
    from distill.cli.parse import print_metrics

    if result.stopped_by is not None:
        if distributed.is_main():
            go_on = f"{command} --output {shlex.quote(str(result.output))} --resume"
            print(f"stopped by {result.stopped_by}; go on with: {go_on}")
        return 130 if result.stopped_by == "SIGINT" else 143
    if distributed.is_main():
        print_metrics(result.metrics)
        print(f"everything is in {result.output}")
    return 0


def print_recipe(resolve: Callable[[], Any]) -> int:
    """Print the configuration that `resolve` returns as a recipe; return the exit status."""
    from distill.config import to_yaml

    with contextlib.redirect_stdout(sys.stderr):  # standard output is the recipe alone
        resolved = resolve()
    print(to_yaml(resolved), end="")
    return 0
