"""Exports the network of a finished run for other programs, with a model card.

Options are checked first. Files are written to a temporary folder, loaded from there and compared
with the network on real images; then they are renamed, the record of the folder last. Limits: the
side of the images is fixed, the batch is not; float32; torch.jit, which is deprecated, is not
written.

Shapes: N images, B batch, S image side, D embedding width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.images import Images
from distill.data.sources import ImageData, data_or_default, open_images
from distill.embeddings.embed import NetworkView
from distill.errors import BadImageError, DistillError, UnknownNameError
from distill.exports.formats import (
    FORMATS,
    Embed,
    FileFormat,
    files_of,
    require_packages,
    without_gradient,
)
from distill.exports.model_card import ModelCard
from distill.exports.record import CARD, RECORD, Artifact, require_free, sha256
from distill.files import atomic_folder
from distill.models.networks import InputSpec
from distill.run_directory import read_config, versions
from teachers.load import FILES, load_trained

COMPARED_BATCH_SIZES = (1, 3, 8)
TOLERANCE = 1e-4  # of a row's length, in float32
TIMED_BATCH_SIZES = (1, 32)
_SECONDS = 1.0  # for each batch size, about
_ROUNDS = (3, 100)  # at least, at most


@dataclass(frozen=True)
class ExportOptions:
    """Options of `distill export`."""

    format: str
    """onnx, torch-export (a .pt2 file) or safetensors (the run's own file, and one under
    torchvision's or timm's names)."""
    output: Path | None = None
    """Folder of the files; None: export/ in the run directory."""
    l2_normalize: bool = False
    """L2-normalize the embeddings in the exported network."""
    overwrite: bool = False
    """Replace an earlier export of the same network."""
    data: str | None = None
    """Images to compare on; None: those of the run."""
    license: str = "unknown"
    """License of the exported network, for the model card: an SPDX name."""
    timing: bool = True
    """Time the original and the exported network side by side."""


@dataclass(frozen=True)
class Exported:
    """Files of an export.

    Attributes:
        folder: Of the files.
        artifacts: The exported files, with differences and times.
        card: The model card.
    """

    folder: Path
    artifacts: tuple[Artifact, ...]
    card: Path


def export(
    run: Path,
    options: ExportOptions,
    *,
    module: nn.Module | None = None,
    data: ImageData | None = None,
) -> Exported:
    """Write the network of a finished run in another format.

    Args:
        run: A run directory of `distill train` or `distill pretrain`.
        options: Format and output.
        module: Your own module that was trained, to be filled with the weights; None for a network
            that is built by name.
        data: The images of the run, for a dataset that a program gave; None: opened by name.

    Raises:
        DistillError: No such format, a run that is not finished, missing packages, other files in
            the output folder, or an exported file whose embeddings differ from the network's;
            nothing is written then.
    """
    _check(run, options)
    network = load_trained(run, module=module)
    weights = next(run / name for name in FILES if (run / name).exists())
    files = files_of(options.format, network, weights, l2_normalize=options.l2_normalize)
    folder = options.output or run / "export"
    names = [file.file_name for file in files]
    record = require_free(folder, names, weights=sha256(weights), overwrite=options.overwrite)
    if data is None or options.data is not None:
        data = open_images(data_or_default(options.data or read_config(run).get("data")))
    images = data.train if data.val is None else data.val
    pixels = real_pixels(images, network.input, number=sum(COMPARED_BATCH_SIZES))
    card = ModelCard(run, network, None if options.data else data, license_name=options.license)
    try:
        with atomic_folder(folder, last=RECORD) as staging:
            artifacts = tuple(_write(file, staging, pixels, options) for file in files)
            record = record.with_artifacts(artifacts, folder)
            (staging / CARD).write_text(card.text(record, weights), encoding="utf-8")
            replace(record, card=sha256(staging / CARD)).write(staging)
    except OSError as error:
        raise DistillError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --output"
        ) from error
    return Exported(folder, artifacts, folder / CARD)


def _check(run: Path, options: ExportOptions) -> None:
    if options.format not in FORMATS:
        raise UnknownNameError("format", options.format, FORMATS)
    if options.format == "safetensors" and options.l2_normalize:
        raise DistillError(
            "--l2-normalize goes with --format onnx or torch-export: a safetensors file holds "
            "weights and computes nothing; leave it out and divide embeddings by their length"
        )
    require_packages(options.format)
    if not (run / "config.yaml").is_file():
        raise DistillError(
            f"{run} is not a run directory: it holds no config.yaml; name one that "
            "`distill train` or `distill pretrain` wrote"
        )


def _write(file: FileFormat, folder: Path, pixels: Tensor, options: ExportOptions) -> Artifact:
    """Write a file, load it again, compare it with the network and time it."""
    path = folder / file.file_name
    original = without_gradient(file.exported)
    try:
        file.write(path)
        embed = file.load(path)
        absolute, relative = compare_outputs(original, embed, pixels, what=path.name)
    except (DistillError, OSError):
        raise
    except Exception as error:  # exporters and runtimes have many exception classes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DistillError(
            f"this network cannot be exported as {file.name} ({reason}); try another --format"
        ) from error
    return Artifact(
        name=path.name,
        format=file.name,
        sha256=sha256(path),
        num_bytes=path.stat().st_size,
        l2_normalize=options.l2_normalize,
        absolute_difference=absolute,
        relative_difference=relative,
        milliseconds={
            str(size): milliseconds_per_image((original, embed), pixels, batch_size=size)
            for size in (TIMED_BATCH_SIZES if options.timing else ())
        },
        versions={**versions(), **{name: version(name) for name in file.packages}},
    )


def real_pixels(images: Images, spec: InputSpec, *, number: int) -> Tensor:
    """Return evenly spaced images of a set through the evaluation view.

    Args:
        images: The set; files that cannot be read are skipped.
        spec: Input of the network.
        number: Number of images to load, at least 1; the set may be smaller.

    Returns:
        float32 (N, 3, S, S) in [0, 1], 1 <= N <= number.

    Raises:
        DistillError: None of them can be read.
    """
    view = NetworkView(spec).build()
    spaced = np.linspace(0, len(images) - 1, min(number, len(images))).round().astype(np.int64)
    readable = []
    for index in spaced.tolist():
        try:
            readable.append(view(images.load(index)))
        except BadImageError:
            continue
    if not readable:
        raise DistillError(
            f"none of {len(spaced)} images of {images.name} can be read, and an exported file is "
            "compared on real images; name others with --data"
        )
    return torch.stack(readable).float() / 255


def compare_outputs(
    original: Embed, exported: Embed, pixels: Tensor, *, what: str
) -> tuple[float, float]:
    """Compare an exported file with the network over batches of 1, 3 and 8 images.

    Args:
        original: The network that was exported.
        exported: The exported file.
        pixels: float32 (N, 3, S, S), N at least 1; used in turn.
        what: Name of the file, for errors.

    Returns:
        The largest difference of two numbers, and the largest length of a row's difference over
        the length of the original's row.

    Raises:
        DistillError: They do not agree within `TOLERANCE`, in shape or in dtype, or the original's
            embeddings are not finite.
    """
    absolute = relative = 0.0
    start = 0
    for size in COMPARED_BATCH_SIZES:
        batch = pixels[torch.arange(start, start + size) % len(pixels)]
        start += size
        difference = _difference(original(batch), exported(batch), what)
        absolute, relative = max(absolute, difference[0]), max(relative, difference[1])
    if relative > TOLERANCE:
        raise DistillError(
            f"{what} does not compute what the network computes: its embeddings differ by "
            f"{relative:.2g} of their length and {TOLERANCE:g} is allowed, so it was "
            "not kept; try another --format, and report it with the versions of your packages"
        )
    return absolute, relative


def _difference(original: Tensor, exported: Tensor, what: str) -> tuple[float, float]:
    if not torch.isfinite(original).all():
        raise DistillError(
            "the network's embeddings of its own images are not finite, so there is nothing to "
            "export; train it again with a lower --learning-rate"
        )
    if (original.shape, original.dtype) != (exported.shape, exported.dtype):
        raise DistillError(
            f"{what} gives {exported.dtype} {tuple(exported.shape)} where the network gives "
            f"{original.dtype} {tuple(original.shape)}, so it was not kept; try another --format"
        )
    if not torch.isfinite(exported).all():
        return torch.inf, torch.inf
    gap = (exported - original).double()
    lengths = original.double().norm(dim=1)
    # A row of zeros, as of a network behind a last ReLU, must come back as zeros.
    relative = torch.where(gap.norm(dim=1) == 0, 0.0, gap.norm(dim=1) / lengths)
    return gap.abs().max().item(), relative.max().item()


def milliseconds_per_image(
    functions: Sequence[Embed], pixels: Tensor, *, batch_size: int
) -> list[float]:
    """Return the median time of each function, in milliseconds for one image.

    The functions take turns, after a warm-up call each, so that other load on the machine slows
    all of them alike.

    Args:
        functions: Any number.
        pixels: float32 (N, 3, S, S), N at least 1; repeated to fill the batch.
        batch_size: Images in a call.
    """
    batch = pixels[torch.arange(batch_size) % len(pixels)]
    for function in functions:
        function(batch)
    seconds: list[list[float]] = [[] for _ in functions]
    least, most = _ROUNDS
    while len(seconds[0]) < least or (len(seconds[0]) < most and sum(map(sum, seconds)) < _SECONDS):
        for function, mine in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(batch)
            mine.append(time.perf_counter() - start)
    return [1000 * median(mine) / batch_size for mine in seconds]
