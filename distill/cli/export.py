"""`distill export`: a trained network for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.cli.parse import parse, print_table
from distill.exports.export import ExportOptions

_EXAMPLES = """Export the network of a finished run, its normalization of pixels included, with a
model card. Every file is compared with the original on real images before it is kept.

examples:
  distill export runs/first --format onnx
      runs/first/export/student.onnx and model-card.md
  distill export runs/first --format torch-export --l2-normalize
      a .pt2 file for PyTorch alone, embeddings of length 1
  distill export runs/first --format safetensors --output exported --license MIT
      the run's own file, and its weights under torchvision's or timm's names
"""


@dataclass(frozen=True)
class ExportCommand:
    """The arguments of `distill export`."""

    run: tyro.conf.Positional[Path]
    """Run directory of `distill train` or `distill pretrain`."""
    options: ExportOptions


def run(argv: list[str]) -> int:
    """Run `distill export`; return the exit status."""
    command = parse(ExportCommand, argv, prog="distill export", description=_EXAMPLES)
    from distill.exports.export import export

    done = export(command.run, command.options)
    sizes = list(done.artifacts[0].milliseconds)
    rows = [
        [
            artifact.format,
            str(done.folder / artifact.name),
            f"{artifact.num_bytes / 2**20:,.1f} MiB",
            f"{artifact.relative_difference:.1e}",
            *(" / ".join(f"{ms:.2f}" for ms in artifact.milliseconds[size]) for size in sizes),
        ]
        for artifact in done.artifacts
    ]
    times = [f"ms/image in batches of {size}" for size in sizes]
    print_table(rows, header=["format", "file", "size", "largest difference", *times])
    print(
        "difference as a share of an embedding's length"
        + ("; times of the original / of the file" if sizes else "")
    )
    print(f"model card: {done.card}")
    return 0
