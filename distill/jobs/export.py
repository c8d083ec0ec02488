"""Exports the network of a finished run, with a model card, after comparing it with the original.

Order: what can be refused is refused; the files are written beside their place, loaded from there
and compared on real images; then all of them are renamed, the record of the folder last.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from distill.data.sources import ImageData, open_images
from distill.engine.run_directory import versions
from distill.errors import DistillError, UnknownNameError
from distill.exports import comparison, timing
from distill.exports.model_card import model_card
from distill.exports.network import Embed, ExportedNetwork, without_gradient
from distill.exports.onnx_file import require_packages
from distill.exports.real_images import real_pixels
from distill.exports.record import CARD, RECORD, Artifact, Record, require_free, sha256
from distill.files import written_together
from distill.jobs.export_formats import FORMATS, ExportedFile, files_of
from distill.jobs.images import data_or_default
from distill.jobs.provenance import FinishedRun, card_facts, open_run


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
    """Licence of the exported network, for the model card: an SPDX name."""
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
        with written_together(folder, last=RECORD) as staging:
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
    return real_pixels(images, run.network.input, number=sum(comparison.BATCH_SIZES))


def _written(
    file: ExportedFile, folder: Path, original: _Original, options: ExportOptions
) -> Artifact:
    """Write a file, load it again, compare and time it."""
    path = folder / file.name
    try:
        file.write(path)
        embed = file.run(path)
        difference = comparison.compare(original.embed, embed, original.pixels, what=file.name)
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
    for size in timing.BATCH_SIZES:
        both = timing.milliseconds_per_image(
            (original.embed, embed), original.pixels, batch_size=size
        )
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
