"""`distill cache`: a teacher's embeddings of a dataset, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from distill.cli.parse import parse
from distill.config import CacheConfig

if TYPE_CHECKING:
    from distill.training.cache import CachedSplit

_EXAMPLES = """Keep a teacher's embeddings on disk. Training does so by itself; beforehand it can be
done on another machine, or in more processes. What was interrupted goes on where it stopped.

examples:
  distill cache --teacher timm:resnet50 --data photos
      in the cache folder, where `distill train` with the same teacher and data looks
  distill cache --teacher timm:resnet50 --data photos --teacher-cache embeddings --cache-dtype fp32
      in a folder of your own; give the same two flags to `distill train`
  distill cache --teacher timm:resnet50 --data photos --num-teacher-views 4
      the center crop and three random crops of each training image
  torchrun --nproc-per-node 8 -m distill cache --teacher timm:resnet50 --data imagenet
      images shared by eight processes
"""


@dataclass(frozen=True)
class CacheCommand:
    """The flags of `distill cache`."""

    config: Annotated[CacheConfig, tyro.conf.arg(name="")] = field(default_factory=CacheConfig)


def run(argv: list[str]) -> int:
    """Run `distill cache`; return the exit status."""
    command = parse(CacheCommand, argv, prog="distill cache", description=_EXAMPLES)
    from distill import distributed
    from distill.cli.parse import print_table
    from distill.training.cache import cache

    found = cache(command.config)
    if distributed.is_main():
        header = ["split", "images", "width", "dtype", "size", "images/s", "seconds", "folder"]
        print_table([_row(split) for split in found], header=header)
    return 0


def _row(found: CachedSplit) -> list[str]:
    rate = found.images_per_second
    return [
        found.split if found.view == 0 else f"{found.split}, view {found.view}",
        f"{found.num_images:,}",
        str(found.embedding_dim),
        found.dtype,
        f"{found.num_bytes / 2**20:,.1f} MiB",
        "-" if rate is None else f"{rate:,.1f}",
        "-" if rate is None else f"{found.seconds:.1f}",
        str(found.folder),
    ]
