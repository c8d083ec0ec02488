"""Makes a page about one run, or about several side by side.

One run is embedded again, at most `num_images` images of a split, so that its neighbors, clusters
and map can be shown; several runs are compared by what they have written down. What cannot be shown
is left out, and the page says why.
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
    """What a report shows, and where it is written."""

    output: Path | None = None
    """File to write; None: report.html in the run directory, of several runs in the current one."""
    data: str | None = None
    """As for training; None: the data of the run."""
    teacher_weights: Path | None = None
    """Weights of the teacher, where the run's own are no longer in their place."""
    class_names: Path | None = None
    """File that says what to call classes: on each line a class folder, a space and its name."""
    num_images: Annotated[int, Ge(2)] = 20_000
    """Images of each split, at most, that clusters and neighbors are made of; drawn at random."""
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 0
    """Picks what is shown."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    num_workers: AtLeast0 | None = None
    """Processes that load images; None: by cores and data."""


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
    if not runs:
        raise DistillError("no run to report on; name at least one run directory")
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise DistillError(
                f"{run} is no run directory: it holds no config.yaml; name what `distill train` or "
                "`distill pretrain` wrote"
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
    """Add the sections that show images, or say why they are missing."""
    weights = [run / name for name in (STUDENT, BACKBONE) if (run / name).is_file()]
    reason = None
    if not weights:
        reason = f"the run has not finished, there is no {STUDENT} yet"
    elif is_own_module(str((read_description(weights[0]) or {}).get("network"))):
        reason = "the network is a module of your own, whose code is not at hand here"
    elif options.data is None and content.options.get("data", "").startswith("dataset:"):
        reason = "the images are a dataset that a program gave; --data names a folder of them"
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
