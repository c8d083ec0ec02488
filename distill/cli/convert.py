"""`distill convert`: published weights to one file that needs nothing else."""

from __future__ import annotations

from distill.cli.parse import parse
from teachers.convert import ConvertOptions

_EXAMPLES = """Convert a teacher to one safetensors file, after which its original is not needed.

examples:
  distill convert --teacher r50x4 --to r50x4.safetensors
      fetches the published checkpoint on first use
  distill convert --teacher r50-c-byol:target --teacher-weights checkpoint.tar.gz
      --to target.safetensors
      the momentum copy in a file that was fetched by hand
  distill --teacher r50x4.safetensors --student alexnet --data photos
      uses the result
"""


def run(argv: list[str]) -> int:
    """Run `distill convert`; return the exit status."""
    options = parse(ConvertOptions, argv, prog="distill convert", description=_EXAMPLES)
    from distill.cli.parse import print_metrics
    from teachers.convert import convert

    print_metrics(convert(options))
    return 0
