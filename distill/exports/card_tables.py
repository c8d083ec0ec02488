"""The tables of a model card: input contract, files, times.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill.exports.markdown import code, table
from distill.exports.network import INPUT
from distill.exports.record import Record
from distill.networks import InputSpec

FORMAT_WORDS = {
    "onnx": "ONNX",
    "torch-export": "torch.export",
    "safetensors": "safetensors, for this toolkit",
    "safetensors-plain": "safetensors, under a library's names",
}


def contract(spec: InputSpec, embedding_dim: int) -> list[str]:
    """Return the table of what goes into the network and what comes out.

    Args:
        spec: What it wants to see.
        embedding_dim: D.
    """
    side = spec.image_size
    prepared = (
        f"shorter side resized to {round(side / spec.crop_fraction)} px ({spec.interpolation}, "
        f"antialiased, as Pillow does), then the central {side} x {side} px"
    )
    mean, deviation = (", ".join(f"{x:g}" for x in values) for values in (spec.mean, spec.std))
    normalized = (
        f"included in every file but a plain safetensors file: mean {mean}, standard deviation "
        f"{deviation}"
    )
    embeddings = (
        f"`embeddings`, float32 (B, {embedding_dim}); of length 1 only where the table of files "
        "says so"
    )
    rows = [
        ("input", f"`{INPUT}`, float32 (B, 3, {side}, {side}), any B from 1 on, red, green, blue"),
        ("range", "0 to 1 (8-bit values divided by 255)"),
        ("preparation", prepared),
        ("normalization", normalized),
        ("output", embeddings),
    ]
    return table(("", ""), rows)


def files(record: Record) -> list[str]:
    """Return the table of the files of an export folder, with differences and times."""
    header = ("file", "format", "bytes", "length 1", "largest difference", "SHA-256")
    rows = [
        (
            code(each.name),
            FORMAT_WORDS[each.format],
            f"{each.num_bytes:,}",
            "yes" if each.l2_normalize else "no",
            f"{each.relative_difference:.1e}",
            code(each.sha256),
        )
        for each in record.artifacts
    ]
    explained = (
        "The difference is that of an embedding from the original network's, as a share of its "
        "length, over batches of 1, 3 and 8 real images on a CPU in float32."
    )
    return [*table(header, rows), "", explained, *_times(record)]


def _times(record: Record) -> list[str]:
    timed = [each for each in record.artifacts if each.milliseconds]
    if not timed:
        return []
    sizes = list(timed[0].milliseconds)
    header = ("milliseconds for an image", *(f"batches of {size}" for size in sizes))
    rows = [
        (code(each.name), *(_pair(each.milliseconds[size]) for size in sizes)) for each in timed
    ]
    return ["", *table(header, rows), "", "The original network, then the file, side by side."]


def _pair(times: Sequence[float]) -> str:
    return f"{times[0]:.3g} / {times[1]:.3g}"
