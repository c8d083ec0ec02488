"""The files that each format of `distill export` consists of: how they are written and run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.exports.network import Embed, ExportedNetwork, without_gradient
from distill.exports.onnx_file import PACKAGES, run_onnx, write_onnx
from distill.exports.plain_weights import library_model, run_plain, write_plain
from distill.exports.torch_export import run_torch_export, write_torch_export
from distill.jobs.provenance import FinishedRun
from teachers import load_trained

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
