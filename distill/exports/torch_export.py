"""torch.export's .pt2 files: the network as a graph, which PyTorch loads without this toolkit.

Source: https://docs.pytorch.org/docs/stable/export.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from distill.exports.network import INPUT, Embed, ExportedNetwork, without_gradient

METADATA = "distill.json"  # the name of the extra file inside


def write_torch_export(network: ExportedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network as a .pt2 file.

    Args:
        network: On the CPU.
        path: The file.
        metadata: Kept in the file, as JSON under `METADATA`.
    """
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            network, (network.example(),), dynamic_shapes={INPUT: {0: batch}}
        )
    for node in program.graph.nodes:  # else they hold the paths of this machine
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata))})


def run_torch_export(path: Path) -> Embed:
    """Return what a .pt2 file computes."""
    return without_gradient(torch.export.load(path).module())
