"""Makes a page about one run, or about several side by side.

One run is embedded again, at most `num_images` images of a split, so that its clusters, neighbors
and map can be shown; several runs are compared by what they have written down. What cannot be shown
is left out, and the page says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import distill
from distill.errors import DistillError
from distill.evaluation.base import EvaluationOptions
from distill.files import atomic_write, require_file_place
from distill.reports.content import RunContent
from distill.reports.page import Made, comparison_page, run_page
from distill.reports.run_facts import read_run
from distill.run_directory import BACKBONE, STUDENT

NAME = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows, and where it is written."""

    output: Path | None = None
    """File to write; None: report.html in the run directory, of several runs in the current one."""
    data: str | None = None
    """As for training; None: the data of the run."""
    teacher_weights: Path | None = None
    """Weights of the teacher, where the run's own are no longer in their place."""
    class_names: Path | None = None
    """File that says what to call classes: on each line a class folder, a space and its name."""
    num_images: int = 20_000
    """Images of each split, at most, that clusters and neighbors are made of; drawn at random."""
    seed: int = 0
    """Picks what is shown."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    num_workers: int | None = None
    """Processes that load images; None: by cores and data."""

    def measurement(self) -> EvaluationOptions:
        """Return what opening a run needs of these."""
        return EvaluationOptions(
            data=self.data,
            device=self.device,
            on_bad_image=self.on_bad_image,
            num_workers=self.num_workers,
        )


def report(runs: Sequence[Path], options: ReportOptions) -> Path:
    """Write a page about runs.

    Args:
        runs: Run directories; one gives its page, several give a comparison.
        options: What is shown.

    Returns:
        The file.

    Raises:
        DistillError: No such run, data or device that is not there, a number out of range, or a
            file that cannot be written.
    """
    output = _checked_output(runs, options)
    contents = [read_run(run) for run in runs]
    made = Made(time.strftime("%Y-%m-%d %H:%M %Z"), distill.__version__)
    if len(runs) == 1:
        page = run_page(_with_pictures(runs[0], contents[0], options), made)
    else:
        page = comparison_page(_with_distinct_names(contents, runs), made)
    try:
        atomic_write(output, page.encode())
    except OSError as error:
        raise DistillError(
            f"{output} cannot be written: {error.strerror}; name another file with --output"
        ) from error
    return output


def _checked_output(runs: Sequence[Path], options: ReportOptions) -> Path:
    if not runs:
        raise DistillError("no run to report on; name at least one run directory")
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise DistillError(
                f"{run} is no run directory: it holds no config.yaml; name what `distill train` or "
                "`distill pretrain` wrote"
            )
    if options.num_images < 2:
        raise DistillError(f"--num-images is {options.num_images}, it must be at least 2")
    if not 0 <= options.seed < 2**31:
        raise DistillError(f"--seed is {options.seed}, it must be between 0 and 2^31 - 1")
    output = options.output or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    require_file_place(output, flag="--output", example=NAME)
    return output


def _with_pictures(path: Path, run: RunContent, options: ReportOptions) -> RunContent:
    """Add the sections that show images, or say why they are missing."""
    if not any((path / name).is_file() for name in (STUDENT, BACKBONE)):
        why = f"the run has not finished, there is no {STUDENT} yet"
        return replace(run, left_out=dict.fromkeys(("neighbors", "clusters", "map"), why))
    from distill.reports.sections import picture_sections

    sections: dict[str, Any] = picture_sections(path, options)
    return replace(run, **sections)


def _with_distinct_names(contents: Sequence[RunContent], runs: Sequence[Path]) -> list[RunContent]:
    """Call runs by their folder's name, or by the whole path where two share one."""
    names = [content.name for content in contents]
    return [
        content if names.count(content.name) == 1 else replace(content, name=str(run))
        for content, run in zip(contents, runs, strict=True)
    ]
