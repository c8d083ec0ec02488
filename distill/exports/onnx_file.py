"""ONNX files: written through torch.export, run by onnxruntime on the CPU.

Source: ONNX, https://onnx.ai; torch.onnx.export(dynamo=True). Deliberate limits: one file, so at
most 2 GiB; nodes do not say from which line of which program they came.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.exports.network import INPUT, OUTPUT, Embed, ExportedNetwork
from distill.models.networks import num_parameters

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_BYTES = 2**31 - 2**24  # protobuf's limit less what the graph itself takes
_BYTES_PER_WEIGHT = 4


def require_packages() -> None:
    """Refuse to go on without the packages that write and run ONNX.

    Raises:
        DistillError: Naming those that are missing and how to install them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DistillError(
            f"--format onnx needs {' and '.join(missing)}, which cannot be imported; "
            "pip install 'distill-vision[onnx]'"
        )


def write_onnx(network: ExportedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network as an ONNX file with input `pixels` and output `embeddings`.

    Args:
        network: On the CPU.
        path: The file.
        metadata: Kept in the file, by name.

    Raises:
        DistillError: The network is larger than an ONNX file can be.
    """
    num_bytes = _BYTES_PER_WEIGHT * num_parameters(network)
    if num_bytes > _MAX_BYTES:
        raise DistillError(
            f"the network has {num_bytes / 2**30:.1f} GiB of weights and an ONNX file holds at "
            "most 2 GiB; use --format torch-export or --format safetensors"
        )
    with _quietly():
        program = torch.onnx.export(
            network,
            (network.example(),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None, "dynamo=True returns the program"
    model = program.model_proto
    for node in model.graph.node:  # else they hold the paths of this machine
        del node.metadata_props[:]
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    path.write_bytes(model.SerializeToString())


def run_onnx(path: Path) -> Embed:
    """Return what an ONNX file computes, by onnxruntime on as many CPU threads as PyTorch uses.

    Args:
        path: The file; it is checked against ONNX's rules first.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def embed(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])

    return embed


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter says about its own insides from the person's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
