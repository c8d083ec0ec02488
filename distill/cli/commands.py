"""The commands: what each reads from the command line, calls and prints; docstrings are help."""

from __future__ import annotations

import contextlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.command import (
    COMMANDS,
    Command,
    Flag,
    Positional,
    command,
    flag_values,
    given_options,
    parse,
    print_metrics,
    print_table,
    require_one_process,
)

if TYPE_CHECKING:
    import torch

    from distill.training.run import RunResult


@command("train", "train a student from a frozen teacher (the default command)", is_shared=True)
def train(argv: Sequence[str]) -> int:
    """Train a student from a frozen teacher.

    Examples:
      distill --teacher pixels --student resnet18 --epochs 2
          on scikit-learn's digits, nothing to download
      distill --teacher timm:resnet50 --student resnet18 --data photos
          a timm teacher on a folder with train/ and val/ class folders, or on unlabeled images
      distill --teacher r50x4 --student alexnet --data imagenet --recipe published
          a published checkpoint (SimCLR ResNet-50 4x, fetched on first use), the paper's settings
      torchrun --nproc-per-node 8 -m distill train --teacher timm:resnet50 --student resnet18
          --data imagenet --recipe published
          batches and anchors shared by eight processes
      distill --output runs/photos --resume
          go on with a run that was stopped; a command that also says what to train begins it first
      distill --teacher pixels --student resnet18 --print-config > my.yaml
          write down every option; `--recipe my.yaml` reads them back
    """
    from distill.training.setup import prepare
    from distill.training.train import train

    return _training("train", argv, prepare, train, again="distill")


@command("pretrain", "train a teacher without labels (SimCLR, C-BYOL, ...)", is_shared=True)
def pretrain(argv: Sequence[str]) -> int:
    """Pre-train a teacher without labels: SimCLR, C-SimCLR, BYOL or C-BYOL.

    Examples:
      distill pretrain --method c-byol --width 0.25
          a small C-BYOL on scikit-learn's digits
      distill pretrain --method c-simclr --arch resnet18 --data photos --image-size 64 --beta 0.1
          SimCLR with a price of 0.1 on residual information
      distill pretrain --method c-byol --arch resnet50 --data imagenet --recipe published-300
          the published settings
      torchrun --nproc-per-node 8 -m distill pretrain --method simclr --data imagenet
          a batch shared by eight processes
      distill pretrain --output runs/c-byol --resume
          go on with a run that was stopped
      distill --teacher runs/c-byol --student alexnet --data photos
          use the result
    """
    from distill.training.pretrain import prepare_pretraining, pretrain

    return _training("pretrain", argv, prepare_pretraining, pretrain, again="distill pretrain")


def _training(
    name: str,
    argv: Sequence[str],
    prepare: Callable[[Any, torch.device], Any],
    run: Callable[[Any], RunResult],
    *,
    again: str,
) -> int:
    from distill.config import to_yaml
    from distill.device import pick_device
    from distill.errors import DistillError
    from distill.training.configuration import (
        STANDS_WITH,
        base_config,
        foreign_option,
        run_to_continue,
    )

    output, recipe = flag_values(argv, "--output"), flag_values(argv, "--recipe")
    asked: dict[str, Any] = {
        option: values[-1]
        for option in (*STANDS_WITH, "method")
        if (values := flag_values(argv, f"--{option}"))
    }
    if plugins := flag_values(argv, "--plugin"):
        asked["plugin"] = plugins
    default = base_config(
        command=name,
        recipe=recipe[-1] if recipe else "default",
        resume_from=run_to_continue(Path(output[-1]) if output else None, given_options(argv)),
        asked=asked,
    )
    foreign = [
        sentence
        for option in given_options(argv)
        if (sentence := foreign_option(option.removeprefix("no_"), default)) is not None
    ]
    if foreign:
        raise DistillError("; ".join(foreign))
    given = parse(
        name,
        argv,
        config=default,
        print_config=Flag("Check everything, print the resolved configuration as a recipe, stop."),
    )
    if given.print_config:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the recipe alone
            resolved = prepare(given.config, pick_device(given.config.run.device)).config
        print(to_yaml(resolved), end="")
        return 0
    return _print_run(run(given.config), again=again)


def _print_run(result: RunResult, *, again: str) -> int:
    """Print the numbers of a run or, when it was stopped, how to go on with it."""
    from distill import distributed

    if result.stopped_by is not None:
        if distributed.is_main():
            go_on = f"{again} --output {shlex.quote(str(result.output))} --resume"
            print(f"stopped by {result.stopped_by}; go on with: {go_on}")
        return 130 if result.stopped_by == "SIGINT" else 143
    if distributed.is_main():
        print_metrics(result.metrics)
        print(f"everything is in {result.output}")
    return 0


@command("cache", "keep a teacher's embeddings on disk before training", is_shared=True)
def cache(argv: Sequence[str]) -> int:
    """Keep a teacher's embeddings on disk.

    Training does so by itself; beforehand it can be done on another machine, or in more processes.
    What was interrupted goes on where it stopped.

    Examples:
      distill cache --teacher timm:resnet50 --data photos
          in the cache folder, where `distill train` with the same teacher and data looks
      distill cache --teacher timm:resnet50 --data photos --teacher-cache embeddings
          --cache-dtype fp32
          in a folder of your own; give the same two flags to `distill train`
      torchrun --nproc-per-node 8 -m distill cache --teacher timm:resnet50 --data imagenet
          images shared by eight processes
    """
    from distill.config import CacheConfig

    config = parse("cache", argv, config=CacheConfig()).config
    from distill import distributed
    from distill.embeddings.cache import cache

    made = cache(config)
    if distributed.is_main():
        rows = [
            [
                split,
                f"{one.num_images:,}",
                str(one.table.embedding_dim),
                one.table.contents.dtype,
                f"{one.num_bytes / 2**20:,.1f} MiB",
                "-" if one.images_per_second is None else f"{one.images_per_second:,.1f}",
                "-" if one.images_per_second is None else f"{one.seconds:.1f}",
                str(one.folder),
            ]
            for split, one in made.items()
        ]
        header = ["split", "images", "width", "dtype", "size", "images/s", "seconds", "folder"]
        print_table(rows, header)
    return 0


def _evaluate(name: str, argv: Sequence[str]) -> int:
    """Run `distill NAME` for an evaluation: its options are the flags, its result is printed."""
    from distill.evaluation.base import EVALUATIONS, describe_metric, run_evaluation

    evaluation = EVALUATIONS.get(name)
    if not evaluation.is_shared:
        require_one_process(name)
    description = f"{inspect.getdoc(evaluation)}\n\nExamples:\n{evaluation.examples}\n"
    if evaluation.accepts_several_runs:
        runs = Positional(
            tuple[Path, ...],
            "Run directories, student.safetensors or backbone.safetensors files, or other weights "
            "with --student.",
        )
    else:
        runs = Positional(
            Path, "Run directory, student.safetensors, or other weights with --student."
        )
    given = parse(name, argv, description=description, runs=runs, options=evaluation.Options)
    paths = given.runs if evaluation.accepts_several_runs else [given.runs]
    result = run_evaluation(evaluation, paths, given.options)
    numbers = {
        name: value
        for name, value in result.metrics.items()
        if isinstance(value, (int, float)) and not evaluation.tables_show_metrics
    }
    for position, table in enumerate(result.tables):
        if table.title:
            print(table.title)
        print_table(table.rows, table.header)
        if numbers or position + 1 < len(result.tables):
            print()
    if numbers:
        rows = []
        for metric, value in numbers.items():
            meaning = describe_metric(metric)
            is_share = meaning is None or meaning.unit == "share of 1"
            rows.append([metric, f"{value:.4f}" if is_share else f"{value:g}"])
        print_table(rows)
    for note in result.notes:
        print(note)
    return 0


def _add_evaluations() -> None:
    """Make a command of every evaluation.

    Names and summaries are read from the text of the files: to import them takes PyTorch, which
    `distill --help` does not wait for.
    """
    registration = re.compile(r'^@register_evaluation\(\s*"([\w-]+)",\s*summary="([^"]*)"', re.M)
    for file in sorted(Path(__file__).parents[1].joinpath("evaluation").glob("*.py")):
        for name, summary in registration.findall(file.read_text(encoding="utf-8")):
            COMMANDS[name] = Command(summary, partial(_evaluate, name), "", is_shared=True)


_add_evaluations()


@command("report", "make a page about a run, or compare several")
def report(argv: Sequence[str]) -> int:
    """Write one HTML file about a run: its numbers, curves, nearest neighbors, clusters and a map.

    It needs no network and no other file.

    Examples:
      distill report runs/first
          runs/first/report.html
      distill report runs/first --data photos --output first.html
          for data that has moved since
      distill report runs/first runs/second --output both.html
          numbers side by side, curves overlaid
    """
    from distill.reports.report import ReportOptions, report

    runs = Positional(tuple[Path, ...], "Run directories.")
    given = parse("report", argv, runs=runs, options=ReportOptions)
    written = report(given.runs, given.options)
    print(f"the report is in {written} ({written.stat().st_size / 2**20:.1f} MiB)")
    return 0


@command("rerun", "train a finished run again and compare what came out", is_shared=True)
def rerun(argv: Sequence[str]) -> int:
    """Train a finished run again as its directory says, and compare.

    Examples:
      distill rerun runs/first
          into runs/first-rerun
      distill rerun runs/first --data /elsewhere/photos --device cpu
          on a machine where the images lie elsewhere

    Exit status: 0 the same weights, or every measure within --tolerance; 1 another result.
    """
    from distill import distributed
    from distill.training.rerun import Rerun, RerunOptions, changed_versions, rerun

    run = Positional(Path, "Run directory of `distill train` or `distill pretrain`.")
    given = parse("rerun", argv, run=run, options=RerunOptions)
    result = rerun(given.run, given.options)
    if not isinstance(result, Rerun):
        return _print_run(result, again=f"distill rerun {given.run}")
    if distributed.is_main():
        for name, (then, now) in changed_versions(given.run).items():
            print(f"{name} was {then} and is {now}")
        rows = [
            [name, f"{then:.4f}", f"{now:.4f}", f"{now - then:+.4f}"]
            for name, (then, now) in result.metrics.items()
        ]
        print_table(rows, ["", "then", "now", "difference"])
        apart = result.weights_difference
        same = "the same, bit for bit" if apart == 0 else f"{apart:.2g} of their length apart"
        print(f"weights: {same}; {result.result.output}")
        if not result.is_same:
            print(
                f"another result: a measure differs by more than --tolerance {result.tolerance:g}"
            )
    return 0 if result.is_same else 1


@command("convert", "convert published weights to one safetensors file")
def convert(argv: Sequence[str]) -> int:
    """Convert a teacher to one safetensors file, after which its original is not needed.

    Examples:
      distill convert --teacher r50x4 --to r50x4.safetensors
          fetches the published checkpoint on first use
      distill convert --teacher r50-c-byol:target --teacher-weights checkpoint.tar.gz
          --to target.safetensors
          the momentum copy in a file that was fetched by hand
      distill --teacher r50x4.safetensors --student alexnet --data photos
          uses the result
    """
    from teachers.convert import ConvertOptions, convert

    print_metrics(convert(parse("convert", argv, options=ConvertOptions).options))
    return 0


@command("export", "export a trained network as ONNX, torch.export, safetensors")
def export(argv: Sequence[str]) -> int:
    """Export the network of a finished run, its normalization of pixels included.

    A model card is written beside it. Every file is compared with the original on real images
    before it is kept.

    Examples:
      distill export runs/first --format onnx
          runs/first/export/student.onnx and model-card.md
      distill export runs/first --format torch-export --l2-normalize
          a .pt2 file for PyTorch alone, embeddings of length 1
      distill export runs/first --format safetensors --output exported --license MIT
          the run's own file, and its weights under torchvision's or timm's names
    """
    from distill.exports.export import ExportOptions, export

    run = Positional(Path, "Run directory of `distill train` or `distill pretrain`.")
    given = parse("export", argv, run=run, options=ExportOptions)
    done = export(given.run, given.options)
    sizes = list(done.artifacts[0].milliseconds)
    rows = [
        [
            artifact.format,
            str(done.folder / artifact.name),
            f"{artifact.num_bytes / 2**20:,.1f} MiB",
            f"{artifact.relative_difference:.1e}",
            *("{:.2f} / {:.2f}".format(*artifact.milliseconds[size]) for size in sizes),
        ]
        for artifact in done.artifacts
    ]
    times = [f"ms/image in batches of {size}" for size in sizes]
    print_table(rows, ["format", "file", "size", "largest difference", *times])
    print(
        "difference as a share of an embedding's length"
        + ("; times of the original / of the file" if sizes else "")
    )
    print(f"model card: {done.card}")
    return 0
