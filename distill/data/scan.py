"""Finds images that cannot be decoded, before hours of training do.

Every image is decoded once, in threads (Pillow releases the interpreter's lock while it decodes).
Deliberate limit: only what the decoder reports is found; some corrupt JPEGs decode to a wrong
picture without complaint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from tqdm import tqdm

from distill.data.images import FolderImages, Images
from distill.data.tar_images import TarImages
from distill.data.views import num_usable_cores
from distill.errors import BadImageError, DistillError

_CHEAP_COUNT = 20_000
_CHEAP_BYTES = 256 * 2**20
_CHUNK = (
    64  # images per task: few enough for a smooth progress bar, many enough for little overhead
)


def scan_images(
    images: Images, *, indices: np.ndarray | None = None, progress: bool = False
) -> list[int]:
    """Decode the images and return the indices of those that cannot be decoded, in the given order.

    Args:
        images: the images.
        indices: which of them, int64 (n,); None for all.
        progress: show a bar on a terminal.
    """
    wanted = (np.arange(len(images)) if indices is None else np.asarray(indices)).tolist()
    chunks = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
    bad: list[int] = []
    hidden = None if progress else True  # None: tqdm hides the bar by itself without a terminal
    with (
        ThreadPoolExecutor(num_usable_cores()) as pool,
        tqdm(total=len(wanted), desc="checking images", unit="img", disable=hidden) as bar,
    ):
        for chunk, bad_in_chunk in zip(
            chunks, pool.map(lambda chunk: _bad_among(images, chunk), chunks), strict=True
        ):
            bad += bad_in_chunk
            bar.update(len(chunk))
    return bad


def scan_is_cheap(images: Images) -> bool:
    """Tell whether checking the images takes seconds: at most 20,000 of them, 256 MiB together."""
    if images.in_memory:
        return True
    if len(images) > _CHEAP_COUNT:
        return False
    if isinstance(images, TarImages):
        return images.is_local and images.num_bytes <= _CHEAP_BYTES
    if not isinstance(images, FolderImages):
        return True
    return sum(_size(images.path(i)) for i in range(len(images))) <= _CHEAP_BYTES


def check_images(
    images: Images,
    *,
    on_bad: Literal["fail", "skip"],
    indices: np.ndarray | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Decode the images and return the indices of the good ones.

    Images held in memory are not decoded: all are good.

    Args:
        images: the images.
        on_bad: "fail" to raise where there is a bad one, "skip" to leave the bad ones out.
        indices: which images, int64 (n,); None for all.
        progress: show a bar on a terminal.

    Returns:
        int64, the readable ones among `indices`, in their order.

    Raises:
        BadImageError: with "fail", a bad image; with "skip", not one is good.
        DistillError: another `on_bad`.
    """
    if on_bad not in ("fail", "skip"):
        raise DistillError(f"on_bad is {on_bad!r}; it must be 'fail' or 'skip'")
    wanted = np.asarray(np.arange(len(images)) if indices is None else indices, dtype=np.int64)
    if images.in_memory:
        return wanted
    bad = scan_images(images, indices=wanted, progress=progress)
    if bad and (on_bad == "fail" or len(bad) == len(wanted)):
        raise BadImageError(_complaint(images, bad, len(wanted)))
    return wanted[~np.isin(wanted, bad)]


def _complaint(images: Images, bad: Sequence[int], num_checked: int) -> str:
    try:
        images.load(bad[0])
        first = f"cannot read image {images.describe(bad[0])}: it could not be read a moment ago"
    except BadImageError as error:
        first = str(error)
    if len(bad) == num_checked:
        return f"{first}; none of the {num_checked:,} images can be read"
    return (
        f"{first}; {len(bad):,} of {num_checked:,} images cannot be read: repair or remove them, "
        "or pass --on-bad-image skip to leave them out"
    )


def _bad_among(images: Images, indices: Sequence[int]) -> list[int]:
    return [i for i in indices if not _is_readable(images, i)]


def _is_readable(images: Images, i: int) -> bool:
    try:
        images.load(i)
    except BadImageError:
        return False
    return True


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # the scan reports it
        return 0
