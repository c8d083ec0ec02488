"""Writes an HTML report about one run, or a comparison of several runs.

The report of one run embeds up to `num_images` images of each split to show neighbors, clusters and
a map; a comparison reads metrics and logs only. Sections that cannot be made are left out, with the
reason on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from distill.config import AtLeast0, check_options
from distill.errors import DistillError
from distill.evaluation.base import EvaluationOptions
from distill.files import atomic_write, require_file_place
from distill.models.networks import is_own_module
from distill.models.weights import read_description
from distill.reports.content import RunContent
from distill.reports.gallery import open_galleries
from distill.reports.page import comparison_page, run_page
from distill.reports.run_facts import read_run
from distill.reports.sections import cluster_section, map_section, neighbor_section
from distill.run_directory import BACKBONE, STUDENT

NAME = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """Options of `distill report`."""

    output: Path | None = None
    """File to write; None: report.html in the run directory, of several runs in the current one."""
    data: str | None = None
    """As for training; None: the data of the run."""
    teacher_weights: Path | None = None
    """Weights of the teacher, if they have moved since training."""
    class_names: Path | None = None
    """File with display names of classes: on each line a class folder, a space and its name."""
    num_images: Annotated[int, Ge(2)] = 20_000
    """Largest number of images of each split for clusters and neighbors; drawn at random."""
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 0
    """Draws the images and clusters to show."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a file that cannot be decoded."""
    num_workers: AtLeast0 | None = None
    """Processes that load images; None: by cores and data."""


def report(runs: Sequence[Path], options: ReportOptions) -> Path:
    """Write a report about a run, or a comparison of several.

    Args:
        runs: Run directories.
        options: What to show and where to write it.

    Returns:
        The file.

    Raises:
        DistillError: No such run, data or device that is not there, a number out of range, or a
            file that cannot be written.
    """
    if not runs:
        raise DistillError("no run to report on; name at least one run directory")
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise DistillError(
                f"{run} is not a run directory: it holds no config.yaml; name one that "
                "`distill train` or `distill pretrain` wrote"
            )
    check_options(options)
    output = options.output or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    require_file_place(output, flag="--output", example=NAME)
    contents = [read_run(run) for run in runs]
    if len(runs) == 1:
        page = run_page(_with_pictures(runs[0], contents[0], options))
    else:
        names = [content.name for content in contents]
        page = comparison_page(
            [  # called by their folder's name, or by the whole path where two share one
                content if names.count(content.name) == 1 else replace(content, name=str(run))
                for content, run in zip(contents, runs, strict=True)
            ]
        )
    try:
        atomic_write(output, page.encode())
    except OSError as error:
        raise DistillError(
            f"{output} cannot be written: {error.strerror}; name another file with --output"
        ) from error
    return output


def _with_pictures(run: Path, content: RunContent, options: ReportOptions) -> RunContent:
    """Add the sections that show images, or the reasons why they are missing."""
    weights = [run / name for name in (STUDENT, BACKBONE) if (run / name).is_file()]
    reason = None
    if not weights:
        reason = f"the run has not finished, there is no {STUDENT} yet"
    elif is_own_module(str((read_description(weights[0]) or {}).get("network"))):
        reason = "the network is a module of your own, whose code is not available here"
    elif options.data is None and content.options.get("data", "").startswith("dataset:"):
        reason = "the images are a dataset object of a program; --data names a folder of them"
    if reason is not None:
        return replace(content, left_out=dict.fromkeys(("neighbors", "clusters", "map"), reason))
    galleries = open_galleries(
        run,
        EvaluationOptions(
            data=options.data,
            device=options.device,
            on_bad_image=options.on_bad_image,
            num_workers=options.num_workers,
        ),
        teacher_weights=options.teacher_weights,
        class_names=options.class_names,
        num_images=options.num_images,
        seed=options.seed,
    )
    student, seed = galleries.student, options.seed
    makers: dict[str, Callable[[], Any]] = {
        "neighbors": lambda: neighbor_section(student, galleries.teacher, seed),
        "clusters": lambda: cluster_section(student, seed),
        "map": lambda: map_section(student, seed),
    }
    sections: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            sections[name] = make()
        except DistillError as error:
            left_out[name] = str(error).rstrip(".")
    if galleries.unavailable is not None:
        left_out["summary"] = galleries.unavailable
    return replace(content, **sections, left_out=left_out)
