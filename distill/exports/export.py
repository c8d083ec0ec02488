"""A few real images as an exported network takes them.

Shapes: N images, S image side.

Times two functions side by side, so that what else the machine does slows both.

Compares what an exported file computes with the network that it was made from.

Shapes: N images, B batch, S image side, D embedding width.

The files that each format of `distill export` consists of: how they are written and run.

Exports the network of a finished run, with a model card, after comparing it with the original.

Order: what can be refused is refused; the files are written beside their place, loaded from there
and compared on real images; then all of them are renamed, the record of the folder last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from distill.data.images import Images
from distill.data.sources import ImageData, data_or_default, open_images
from distill.embeddings.embed import NetworkView
from distill.errors import BadImageError, DistillError, UnknownNameError
from distill.exports.model_card import model_card
from distill.exports.network import Embed, ExportedNetwork, without_gradient
from distill.exports.onnx_file import PACKAGES, require_packages, run_onnx, write_onnx
from distill.exports.plain_weights import library_model, run_plain, write_plain
from distill.exports.provenance import FinishedRun, card_facts, open_run
from distill.exports.record import CARD, RECORD, Artifact, Record, require_free, sha256
from distill.exports.torch_export import run_torch_export, write_torch_export
from distill.files import atomic_folder
from distill.models.networks import InputSpec
from distill.run_directory import versions
from teachers.load import load_trained


def real_pixels(images: Images, spec: InputSpec, *, number: int) -> Tensor:
    """Return evenly spaced images of a set through the evaluation view.

    Args:
        images: The set; files that cannot be read are passed over.
        spec: What the network wants to see.
        number: How many to look at, at least 1; the set may be smaller.

    Returns:
        float32 (N, 3, S, S) in [0, 1], 1 <= N <= number.

    Raises:
        DistillError: None of them can be read.
    """
    view = NetworkView(spec).build()
    spaced = np.linspace(0, len(images) - 1, min(number, len(images))).round().astype(np.int64)
    found = []
    for index in spaced.tolist():
        try:
            found.append(view(images.load(index)))
        except BadImageError:
            continue
    if not found:
        raise DistillError(
            f"none of {len(spaced)} images of {images.name} can be read, and an exported file is "
            "compared on real images; name others with --data"
        )
    return torch.stack(found).float() / 255


TIMED_BATCH_SIZES = (1, 32)
_SECONDS = 1.0  # for each batch size, about
_ROUNDS = (3, 100)  # at least, at most


def milliseconds_per_image(
    functions: Sequence[Embed], pixels: Tensor, *, batch_size: int
) -> list[float]:
    """Return the median time of each function, in milliseconds for one image.

    The functions take turns, after one call each that does not count.

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


COMPARED_BATCH_SIZES = (1, 3, 8)
TOLERANCE = 1e-4  # of a row's length, in float32


@dataclass(frozen=True)
class Difference:
    """How far the embeddings of an exported file are from the original's.

    Attributes:
        absolute: Largest difference of two numbers.
        relative: Largest length of a row's difference over the length of the original's row.
    """

    absolute: float
    relative: float


def compare_outputs(original: Embed, exported: Embed, pixels: Tensor, *, what: str) -> Difference:
    """Return the largest difference over batches of 1, 3 and 8 images.

    Args:
        original: The network that was exported.
        exported: What the file computes.
        pixels: float32 (N, 3, S, S), N at least 1; they are taken in turn.
        what: The file, for errors.

    Raises:
        DistillError: They do not agree within `TOLERANCE`, in shape or in dtype, or the original's
            embeddings are not finite.
    """
    found = [_difference(original(b), exported(b), what) for b in _batches(pixels)]
    difference = Difference(
        absolute=max(each.absolute for each in found),
        relative=max(each.relative for each in found),
    )
    if difference.relative > TOLERANCE:
        raise DistillError(
            f"{what} does not compute what the network computes: its embeddings differ by "
            f"{difference.relative:.2g} of their length and {TOLERANCE:g} is allowed, so it was "
            "not kept; try another --format, and report it with the versions of your packages"
        )
    return difference


def _difference(original: Tensor, exported: Tensor, what: str) -> Difference:
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
        return Difference(torch.inf, torch.inf)
    gap = (exported - original).double()
    lengths = original.double().norm(dim=1)
    # A row of zeros, as of a network behind a last ReLU, must come back as zeros.
    relative = torch.where(gap.norm(dim=1) == 0, 0.0, gap.norm(dim=1) / lengths)
    return Difference(gap.abs().max().item(), relative.max().item())


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    start = 0
    for size in COMPARED_BATCH_SIZES:
        yield pixels[torch.arange(start, start + size) % len(pixels)]
        start += size


FORMATS = ("onnx", "torch-export", "safetensors")


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export.

    Attributes:
        name: Of the file.
        format: See `distill.exports.record.Artifact`.
        write: Writes it under a path.
        run: Loads it from a path and returns what it computes.
        packages: Whose versions matter beside PyTorch's.
    """

    name: str
    format: str
    write: Callable[[Path], None]
    run: Callable[[Path], Embed]
    packages: tuple[str, ...] = ()


def files_of(
    export_format: str, run: FinishedRun, network: ExportedNetwork, *, weights: str
) -> list[ExportedFile]:
    """Return the files of a format.

    Args:
        export_format: One of `FORMATS`.
        run: The run.
        network: Its network as it is exported.
        weights: SHA-256 of the run's weights file, kept in the files that can keep it.
    """
    stem, described = run.weights.stem, _described(run, network, weights)
    if export_format == "onnx":
        return [
            ExportedFile(
                f"{stem}.onnx",
                "onnx",
                lambda path: write_onnx(network, path, described),
                run_onnx,
                PACKAGES,
            )
        ]
    if export_format == "torch-export":
        return [
            ExportedFile(
                f"{stem}.pt2",
                "torch-export",
                lambda path: write_torch_export(network, path, described),
                run_torch_export,
            )
        ]
    return _weights_files(run)


def _described(run: FinishedRun, network: ExportedNetwork, weights: str) -> dict[str, str]:
    spec = run.network.input
    return {
        "network": run.network.spec.name,
        "weights_sha256": weights,
        "input_range": "0 to 1",
        "input_channels": "RGB",
        "l2_normalize": str(network.l2_normalize).lower(),
        **{name: str(value) for name, value in vars(spec).items()},
    }


def _weights_files(run: FinishedRun) -> list[ExportedFile]:
    """Return the run's own file and, where a library has the network, the one for that library."""
    network = run.network

    def copy(path: Path) -> None:
        shutil.copyfile(run.weights, path)

    own = ExportedFile(
        run.weights.name,
        "safetensors",
        copy,
        lambda path: without_gradient(load_trained(path)),
        ("safetensors",),
    )
    model = library_model(network)
    if model is None:
        return [own]
    plain = ExportedFile(
        f"{run.weights.stem}-plain.safetensors",
        "safetensors-plain",
        lambda path: write_plain(network, path),
        lambda path: run_plain(path, model, network.input),
        ("safetensors", model.library),
    )
    return [own, plain]


@dataclass(frozen=True)
class ExportOptions:
    """What `distill export` writes, and where."""

    format: str
    """onnx, torch-export (a .pt2 file) or safetensors (the run's own file, and one under
    torchvision's or timm's names)."""
    output: Path | None = None
    """Folder of the files; None: export/ in the run directory."""
    l2_normalize: bool = False
    """Let the exported network divide embeddings by their length."""
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
    """What an export wrote.

    Attributes:
        folder: Where the files lie.
        artifacts: The exported files, with what was compared and timed.
        card: The model card.
    """

    folder: Path
    artifacts: tuple[Artifact, ...]
    card: Path


@dataclass(frozen=True)
class _Original:
    """What exported files are compared with: the network, and float32 images (N, 3, S, S)."""

    embed: Embed
    pixels: Tensor


def export(run_directory: Path, options: ExportOptions) -> Exported:
    """Write the network of a finished run in another format.

    Args:
        run_directory: Of `distill train` or `distill pretrain`.
        options: What to write.

    Raises:
        DistillError: No such format, a run that is not finished, missing packages, something of
            another origin in the place, or a file that does not compute what the network computes;
            nothing was written then.
    """
    _check(options)
    run = open_run(run_directory)
    weights = sha256(run.weights)
    network = ExportedNetwork(run.network, l2_normalize=options.l2_normalize)
    files = files_of(options.format, run, network, weights=weights)
    folder = options.output or run.path / "export"
    names = [file.name for file in files]
    record = require_free(folder, names, weights=weights, overwrite=options.overwrite)
    data = open_images(data_or_default(options.data or run.options.get("data")))
    original = _Original(without_gradient(network), _pixels(run, data))
    try:
        with atomic_folder(folder, last=RECORD) as staging:
            artifacts = tuple(_written(file, staging, original, options) for file in files)
            record = record.with_artifacts(artifacts, folder)
            _describe(staging, record, run, None if options.data else data, options)
    except OSError as error:
        raise DistillError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --output"
        ) from error
    return Exported(folder, artifacts, folder / CARD)


def _check(options: ExportOptions) -> None:
    if options.format not in FORMATS:
        raise UnknownNameError("format", options.format, FORMATS)
    if options.format == "safetensors" and options.l2_normalize:
        raise DistillError(
            "--l2-normalize goes with --format onnx or torch-export: a safetensors file holds "
            "weights and computes nothing; leave it out and divide embeddings by their length"
        )
    if options.format == "onnx":
        require_packages()


def _pixels(run: FinishedRun, data: ImageData) -> Tensor:
    """Return as many images as all batches of the comparison hold; validation images if any."""
    images = data.train if data.val is None else data.val
    return real_pixels(images, run.network.input, number=sum(COMPARED_BATCH_SIZES))


def _written(
    file: ExportedFile, folder: Path, original: _Original, options: ExportOptions
) -> Artifact:
    """Write a file, load it again, compare and time it."""
    path = folder / file.name
    try:
        file.write(path)
        embed = file.run(path)
        difference = compare_outputs(original.embed, embed, original.pixels, what=file.name)
    except (DistillError, OSError):
        raise
    except Exception as error:  # exporters and runtimes raise families of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DistillError(
            f"this network cannot be exported as {file.format} ({reason}); try another --format"
        ) from error
    milliseconds = _timed(original, embed) if options.timing else {}
    return Artifact(
        name=file.name,
        format=file.format,
        sha256=sha256(path),
        num_bytes=path.stat().st_size,
        l2_normalize=options.l2_normalize,
        absolute_difference=difference.absolute,
        relative_difference=difference.relative,
        milliseconds=milliseconds,
        versions={**versions(), **{name: version(name) for name in file.packages}},
    )


def _timed(original: _Original, embed: Embed) -> dict[str, tuple[float, float]]:
    times = {}
    for size in TIMED_BATCH_SIZES:
        both = milliseconds_per_image((original.embed, embed), original.pixels, batch_size=size)
        times[str(size)] = (both[0], both[1])
    return times


def _describe(
    folder: Path, record: Record, run: FinishedRun, data: ImageData | None, options: ExportOptions
) -> None:
    """Write the model card and the record of all files."""
    card = model_card(card_facts(run, data, license_name=options.license), record)
    (folder / CARD).write_text(card, encoding="utf-8")
    finished = record.with_card(sha256(folder / CARD))
    (folder / RECORD).write_text(finished.to_json(), encoding="utf-8")
